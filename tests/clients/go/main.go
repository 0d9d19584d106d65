// The Go clients: what a program of net/http or grpc-go does and reads, as JSON lines on standard output.
//
//	go-client http 1|2 HOST:PORT     calls of net/http over one version of HTTP
//	go-client get URL                one GET, as a program that shows its error would print it
//	go-client grpc HOST:PORT         each kind of call of grpc-go
//	go-client unary HOST:PORT        one call, with the status that its user reads
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("see the head of main.go"))
	}
	switch os.Args[1] {
	case "http":
		httpCalls(os.Args[2], os.Args[3])
	case "get":
		get(os.Args[2])
	case "grpc":
		grpcCalls(os.Args[2])
	case "unary":
		unary(os.Args[2])
	}
}

// told writes what one call came to.
func told(call string, fields map[string]any) {
	fields["call"] = call
	line, err := json.Marshal(fields)
	if err != nil {
		fail(err)
	}
	fmt.Println(string(line))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
