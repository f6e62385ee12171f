//! Opening handshakes, the list of subprotocols among them, against RFC 6455 section 4.2.1 read by somebody else. The
//! input is a method and then header lines, each of which begins with a letter that stands for its name.

use http::HeaderValue;
use wsbouncer::handshake::parse;
use wsbouncer::head::whole;

use crate::bytes::{base64, is_token, list};

const NAMES: [(u8, &str); 9] = [
    (b'u', "Upgrade"),
    (b'c', "Connection"),
    (b'v', "Sec-WebSocket-Version"),
    (b'k', "Sec-WebSocket-Key"),
    (b'p', "Sec-WebSocket-Protocol"),
    (b'e', "Sec-WebSocket-Extensions"),
    (b'l', "Content-Length"),
    (b't', "Transfer-Encoding"),
    (b'x', "Expect"),
];

pub fn run(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let method = lines.next().unwrap_or_default();
    let mut head = [method, b" / HTTP/1.1\r\nHost: a\r\n"].concat();
    for line in lines {
        let Some((letter, value)) = line.split_first() else { continue };
        let Some((_, name)) = NAMES.iter().find(|(known, _)| known == letter) else { continue };
        head.extend([name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    let Ok(parts) = whole(head) else { return };
    let values = |letter: u8| -> Vec<&[u8]> {
        let (_, name) = NAMES.iter().find(|(known, _)| *known == letter).unwrap();
        parts.headers.get_all(*name).iter().map(HeaderValue::as_bytes).collect()
    };
    let items = |letter| -> Vec<&[u8]> {
        let all = list(&values(letter));
        all.into_iter().filter(|item| !item.is_empty()).collect()
    };
    let is = |item: &[u8], word: &str| item.to_ascii_lowercase() == word.as_bytes();
    let offers = list(&values(b'p'));
    let is_good_key = |key: &[u8]| key.len() == 24 && base64(key, false).is_some_and(|key| key.len() == 16);
    let is_handshake = parts.method == "GET"
        && matches!(items(b'u')[..], [one] if is(one, "websocket"))
        && items(b'c').iter().any(|item| is(item, "upgrade"))
        && values(b'v') == [b"13"]
        && matches!(values(b'k')[..], [key] if is_good_key(key))
        && values(b'l').iter().all(|length| *length == b"0")
        && values(b't').is_empty()
        && values(b'x').is_empty()
        && offers.iter().all(|offer| is_token(offer))
        && offers.len() <= 32
        && values(b'p').iter().map(|line| line.len()).sum::<usize>() <= 4096;
    match parse(&parts) {
        Ok(upgrade) => {
            assert!(is_handshake, "accepted, and no handshake");
            assert_eq!(upgrade.key().as_bytes(), values(b'k')[0]);
            let ours: Vec<&[u8]> = upgrade.protocols.iter().map(|item| item.as_bytes()).collect();
            assert_eq!(ours, offers);
            let ours: Vec<&[u8]> = upgrade.extensions.iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(ours, values(b'e'));
        }
        Err(denial) => assert!(!is_handshake, "a handshake, and refused: {}", denial.detail),
    }
}
