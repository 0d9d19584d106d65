package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

func client(version string) *http.Client {
	transport := &http.Transport{ForceAttemptHTTP2: version == "2"}
	if version == "1" {
		// The documented way to have no HTTP/2.
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return &http.Client{Transport: transport, Timeout: 15 * time.Second}
}

func httpCalls(version, host string) {
	client := client(version)
	from := fmt.Sprintf("?net-http-%s", version)
	call := func(name, method, path string, body io.Reader) {
		request, err := http.NewRequest(method, "https://"+host+path+from, body)
		if err != nil {
			fail(err)
		}
		response, err := client.Do(request)
		if err != nil {
			fail(err)
		}
		defer response.Body.Close()
		first := make([]byte, 4096)
		n, _ := response.Body.Read(first)
		rest, err := io.ReadAll(response.Body)
		if err != nil {
			fail(err)
		}
		told(name, map[string]any{
			"version": response.Proto, "status": response.StatusCode,
			"first": string(first[:n]), "text": string(first[:n]) + string(rest),
		})
	}
	call("get", "GET", "/get", nil)
	call("post", "POST", "/echo", strings.NewReader("posted"))
	// Of unknown length, written piece by piece.
	reader, writer := io.Pipe()
	go func() {
		for _, piece := range []string{"one ", "two ", "three"} {
			_, _ = writer.Write([]byte(piece))
			time.Sleep(50 * time.Millisecond)
		}
		_ = writer.Close()
	}()
	call("upload", "POST", "/echo", reader)
	call("events", "GET", "/events", nil)
}

func get(url string) {
	response, err := http.Get(url)
	if err != nil {
		fail(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Printf("%s\n%s", response.Status, body)
	if response.StatusCode >= 400 {
		fail(fmt.Errorf("%s", response.Status))
	}
}
