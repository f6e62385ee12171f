// A gorilla/websocket client. Dials, sends one message, and prints what came back as one line of JSON.
//
// With -get-first it makes the seed question's mistake: it authenticates a plain GET of the same URL, and
// then dials without the key, in the belief that the server remembers.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/gorilla/websocket"
)

type answer struct {
	Status  int         `json:"status"`
	Headers http.Header `json:"headers"`
	Body    string      `json:"body,omitempty"`
	Echo    string      `json:"echo,omitempty"`
}

func describe(response *http.Response) answer {
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	return answer{Status: response.StatusCode, Headers: response.Header, Body: string(body)}
}

func get(url, key string) answer {
	request, err := http.NewRequest("GET", strings.Replace(url, "ws://", "http://", 1), nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("X-Api-Key", key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	return describe(response)
}

func dial(url, key, message string) answer {
	headers := http.Header{}
	if key != "" {
		headers.Set("X-Api-Key", key)
	}
	conn, response, err := websocket.DefaultDialer.Dial(url, headers)
	if err == websocket.ErrBadHandshake {
		return describe(response) // gorilla keeps the first 1024 bytes of the body
	}
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
		log.Fatal(err)
	}
	_, echo, err := conn.ReadMessage()
	if err != nil {
		log.Fatal(err)
	}
	return answer{Status: response.StatusCode, Headers: response.Header, Echo: string(echo)}
}

func main() {
	url := flag.String("url", "", "ws:// URL to dial")
	key := flag.String("key", "", "sent as X-Api-Key")
	getFirst := flag.Bool("get-first", false, "send the key with a plain GET, and not with the upgrade")
	message := flag.String("message", "hello from gorilla", "sent once the connection is open")
	flag.Parse()

	result := map[string]answer{}
	if *getFirst {
		result["get"] = get(*url, *key)
		*key = ""
	}
	result["dial"] = dial(*url, *key, *message)
	json.NewEncoder(os.Stdout).Encode(result)
}
