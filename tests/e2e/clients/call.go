package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	answer, err := http.Get("https://secure.services.svc/v1/charges/5")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	body, _ := io.ReadAll(answer.Body)
	fmt.Println(strings.TrimSpace(string(body)))
	if answer.StatusCode != 200 {
		os.Exit(1)
	}
}
