//! What `--help` says below the options: examples, signals, exit codes.

pub(super) const SEE_HELP: &str = "`wsbouncer --help` and `wsbouncer COMMAND --help` explain more, with examples.";

pub(super) const OVERVIEW: &str = "\
Examples:
  See it work, with nothing else installed:
    wsbouncer demo

  Protect a service that listens on 127.0.0.1:9000:
    printf '%s\\n' 'listen: 127.0.0.1:8080' 'upstream: ws://127.0.0.1:9000' \\
      'keys:' '- { id: me, secret: test_api_key }' > wsbouncer.yaml
    wsbouncer check wsbouncer.yaml
    wsbouncer serve --config wsbouncer.yaml

  Replace that plain secret by a real key, in the file, while it runs:
    wsbouncer key new --id me

Environment:
  WSBOUNCER_CONFIG        the file, for `serve`
  WSBOUNCER_LOG           the log level, for `serve` and `demo`
  WSBOUNCER_LOG_FORMAT    human or json, for `serve` and `demo`
  A flag wins over its variable.

Exit codes:
  0  done (`probe`: ready, let in; `check`: no fault; `serve`, `demo`: told to stop)
  1  cannot run (a port is taken, no answer, stdout is closed)
  2  the YAML file has a fault, or the command line has

Commands print their result to stdout, all else to stderr.
`wsbouncer COMMAND --help` explains each command.";

pub(super) const SERVE: &str = "\
Examples:
  wsbouncer serve --config wsbouncer.yaml
  WSBOUNCER_CONFIG=wsbouncer.yaml WSBOUNCER_LOG_FORMAT=json wsbouncer serve

  The smallest useful file: one route that takes every host and path, one key.
    listen: 127.0.0.1:8080
    upstream: ws://127.0.0.1:9000
    keys:
      - { id: me, secret: test_api_key }

Signals:
  SIGHUP           read the file again now
  SIGTERM, SIGINT  drain: stop accepting, close the connections spread over a
                   while (`drain` in the file), exit 0; a second one: at once

Exit codes:
  0  told to stop, and stopped
  1  cannot run, such as when a port is taken
  2  the file has a fault (all of them are printed), or the command line has

The log goes to stderr. The line `listening` says which addresses are open.";

pub(super) const CHECK: &str = "\
Examples:
  wsbouncer check wsbouncer.yaml
  wsbouncer check --format json wsbouncer.yaml | jq .problems

Output as JSON:
  ok, routes, keys, and a list of problems and of warnings: file, line, column,
  field, says, note, help.

Exit codes:
  0  the file is good, perhaps with warnings
  2  the file has a fault, or cannot be read";

pub(super) const EXPLAIN: &str = "\
Examples:
  wsbouncer explain -c wsbouncer.yaml --url ws://chat.example.com/ws \\
    -H 'X-Api-Key: test_api_key' --origin https://chat.example.com
  wsbouncer explain -c wsbouncer.yaml --url ws://localhost/ws \\
    --subprotocol x-api-key --subprotocol test_api_key --from 10.0.0.7
  wsbouncer explain -c wsbouncer.yaml --curl \"curl http://a/ws -H 'X-Api-Key: a'\"
  pbpaste | wsbouncer explain -c wsbouncer.yaml --request -

Limits count what is open in a running proxy, and here nothing is.

Exit codes:
  0  it would be let in
  1  it would be refused
  2  the file has a fault, or the command line has";

pub(super) const KEY_NEW: &str = "\
Examples:
  wsbouncer key new --id dashboard

Output:
  stdout: the key, an empty line, and the lines for the YAML file; they go under
  `keys:`, or into a file that `key_files` names. To rotate a key that exists, add
  only the new `- sha256:` line to its `secrets:`; both work until the old one is
  taken out.

The key:
  wsb_ + 30 random characters (178 bits, from the system's generator) + 6 characters
  of checksum, each one of 0-9 A-Z a-z: fit for a header, for a WebSocket subprotocol
  and for a URL. For secret scanners:  \\bwsb_[0-9A-Za-z]{36}\\b
  The checksum is the CRC-32 (that of zlib) of the 34 characters before it, as a
  number in base 62, digits in the order above, zeros in front.

Exit codes:
  0  printed
  1  the key could not be made or printed
  2  the command line has a fault";

pub(super) const KEY_HASH: &str = "\
Examples:
  printf '%s\\n' \"$OLD_KEY\" | wsbouncer key hash
  wsbouncer key hash < secret.txt

Output:
  One line, sha256: and 64 hexadecimal digits in quotes, for the `secrets:` of a key.

Exit codes:
  0  printed
  1  no secret was read: nothing there, or more than one line";

pub(super) const PROBE: &str = "\
Examples:
  wsbouncer probe
  wsbouncer probe http://127.0.0.1:9901/healthz

  In a Dockerfile:
    HEALTHCHECK CMD [\"/wsbouncer\", \"probe\"]

  A WebSocket, from the handshake to the service and back:
    wsbouncer probe ws://127.0.0.1:8080/ws --key-file key.txt
    MY_KEY=test_api_key wsbouncer probe ws://127.0.0.1:8080/ws --key-env MY_KEY \\
      --subprotocol-pair x-api-key --origin https://chat.example.com --echo=hello

The key:
  Comes from a variable or a file, never from the command line, where other users
  and the shell's history see it; it is printed nowhere.

Output:
  http://  the status line and the body of the answer: on stdout when the status is
           200, on stderr otherwise.
  ws://    well, refused, late or failed; status, subprotocol, extensions and
           X-Request-Id; and what connect, handshake and ping (or echo) took. On
           stdout when it went well, on stderr otherwise. As JSON: always on stdout.

  Refused is an answer other than 101, with the reason and the detail of its body; or
  a Close, with its code and reason, that comes before the Pong or the echo.

Exit codes:
  0  the answer was 200; the Pong or the echo came
  1  another status, refused, no answer, or none in time
  2  the command line has a fault, or the key cannot be read";

pub(super) const SCHEMA: &str = "\
Examples:
  wsbouncer schema > wsbouncer.schema.json

  In an editor with yaml-language-server, as the first line of the file:
    # yaml-language-server: $schema=./wsbouncer.schema.json";

pub(super) const DEMO: &str = "\
Examples:
  wsbouncer demo
  wsbouncer demo --listen 127.0.0.1:0
  WSBOUNCER_LOG=debug wsbouncer demo

Signals:
  SIGHUP           read the file again now
  SIGTERM, SIGINT  close the connections, remove the directory, exit 0

Exit codes:
  0  told to stop, and stopped
  1  cannot run, such as when the port is taken
  2  the command line has a fault

What to paste goes to stdout, the log of the proxy to stderr. Anyone who has the key
and reaches the address can talk to the echo service, and to nothing else.";
