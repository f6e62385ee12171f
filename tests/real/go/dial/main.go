// A gorilla/websocket client. Dials, sends one message, and prints what came back as one line of JSON.
//
// With -get-first it makes the seed question's mistake: it authenticates a plain GET of the same URL, and
// then dials without the key, in the belief that the server remembers. With -login URL the GET goes there, and a
// cookie jar remembers; it dials twice then.
package main

import (
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
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

func get(url, key string, jar http.CookieJar) answer {
	request, err := http.NewRequest("GET", strings.Replace(url, "ws://", "http://", 1), nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("X-Api-Key", key)
	response, err := (&http.Client{Jar: jar}).Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	return describe(response)
}

func dial(url, key, message string, jar http.CookieJar) answer {
	headers := http.Header{}
	if key != "" {
		headers.Set("X-Api-Key", key)
	}
	dialer := websocket.Dialer{Jar: jar}
	conn, response, err := dialer.Dial(url, headers)
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
	login := flag.String("login", "", "http:// URL: send the key there with a GET, and keep the cookies for the upgrade")
	message := flag.String("message", "hello from gorilla", "sent once the connection is open")
	flag.Parse()

	jar, err := cookiejar.New(nil)
	if err != nil {
		log.Fatal(err)
	}
	result := map[string]answer{}
	if *getFirst {
		*login = *url
	}
	if *login != "" {
		result["get"] = get(*login, *key, jar)
		*key = ""
	}
	result["dial"] = dial(*url, *key, *message, jar)
	if *login != "" {
		result["again"] = dial(*url, *key, *message, jar)
	}
	json.NewEncoder(os.Stdout).Encode(result)
}
