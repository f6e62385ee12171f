//! What an upgrade is on the wire (RFC 6455 section 4): the client's request read, the upstream's answer checked, the
//! client's answer written. Pure: no socket, no clock.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use sha1::{Digest as _, Sha1};

use crate::answer::Answer;
use crate::auth::credential::Carrier;
use crate::denial::{Denial, Reason};
use crate::fields::{Twice, is_token, only, tokens};
use crate::frame;

/// A well-formed opening handshake, once it has been read out of the request.
#[derive(Debug)]
pub struct Upgrade {
    key: Box<str>,
    /// What is offered, in order; the credential is taken out of it on the way.
    pub protocols: Vec<Box<str>>,
    /// As sent: parameters are between the two ends.
    pub extensions: Vec<HeaderValue>,
}

/// More items than this are no offer (design section 3).
const MAX_PROTOCOLS: usize = 32;
const MAX_PROTOCOL_BYTES: usize = 4 * 1024;

/// What the detail of a plain request's 426 says when it carried a good key: the most common misunderstanding.
pub fn key_on_plain_request(ticket_path: Option<&str>) -> String {
    let mut detail = "the key is good, but this is a plain HTTP request, and authenticating it does nothing for the \
        WebSocket that is dialled next: the key must ride on the upgrade itself, as a header or, from a browser, in the \
        list of subprotocols"
        .to_owned();
    if let Some(path) = ticket_path {
        detail.push_str("; or POST the key to ");
        detail.push_str(path);
        detail.push_str(" for a ticket, which opens one handshake");
    }
    detail
}

/// Reads the handshake out of a request.
///
/// # Errors
/// 426 `upgrade_required` for a request that does not ask for a WebSocket of version 13, 400 `bad_handshake` for one that
/// does and gets it wrong.
pub fn parse(parts: &Parts) -> Result<Upgrade, Denial> {
    let bad = |detail: &'static str| Err(Denial::bad_handshake(detail));
    let headers = &parts.headers;
    let mut upgrade = tokens(headers, &UPGRADE);
    match (upgrade.next(), upgrade.next()) {
        (Some(token), None) if token.eq_ignore_ascii_case("websocket") => {}
        (Some(first), Some(second)) if [first, second].iter().any(|token| token.eq_ignore_ascii_case("websocket")) => {
            return bad("the Upgrade header names more than websocket");
        }
        _ => {
            let detail = "this is a WebSocket route: ask for an upgrade to websocket, version 13";
            return Err(Denial::new(Reason::UpgradeRequired, detail));
        }
    }
    if parts.method != Method::GET {
        return bad("a WebSocket handshake is a GET request");
    }
    if parts.version != Version::HTTP_11 {
        return bad("a WebSocket handshake is an HTTP/1.1 request");
    }
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return bad("the Connection header does not say upgrade; a proxy in between may have removed it");
    }
    let body = headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0");
    if body || [TRANSFER_ENCODING, EXPECT, TRAILER].iter().any(|name| headers.contains_key(name)) {
        return bad("a WebSocket handshake has no body");
    }
    match only(headers, &SEC_WEBSOCKET_VERSION) {
        Ok(Some("13")) => {}
        Ok(_) => {
            return Err(Denial::new(Reason::UpgradeRequired, "only version 13 of the WebSocket protocol is served"));
        }
        Err(Twice) => return bad("the request has two Sec-WebSocket-Version headers"),
    }
    let key = match only(headers, &SEC_WEBSOCKET_KEY) {
        Ok(Some(key)) if STANDARD.decode_slice(key, &mut [0; 32]).is_ok_and(|length| length == 16) => key,
        Ok(Some(_)) => return bad("Sec-WebSocket-Key is not 16 bytes in base64"),
        Ok(None) => return bad("Sec-WebSocket-Key is missing"),
        Err(Twice) => return bad("the request has two Sec-WebSocket-Key headers"),
    };
    Ok(Upgrade {
        key: key.into(),
        protocols: protocols(headers)?,
        extensions: headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().cloned().collect(),
    })
}

/// All `Sec-WebSocket-Protocol` lines as one list of tokens.
fn protocols(headers: &HeaderMap) -> Result<Vec<Box<str>>, Denial> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    if lines.iter().map(HeaderValue::len).sum::<usize>() > MAX_PROTOCOL_BYTES {
        return Err(Denial::bad_handshake("the list of subprotocols is over 4 KiB"));
    }
    let mut items = Vec::new();
    for line in lines {
        let line = line.to_str().map_err(|_| Denial::bad_handshake("the list of subprotocols is not plain ASCII"))?;
        for item in line.split(',') {
            let item = item.trim_matches([' ', '\t']);
            if !is_token(item) {
                return Err(Denial::bad_handshake("the list of subprotocols holds something that is no token"));
            }
            items.push(item.into());
        }
    }
    if items.len() > MAX_PROTOCOLS {
        return Err(Denial::bad_handshake("the list of subprotocols has over 32 items"));
    }
    Ok(items)
}

impl Upgrade {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Offers the upstream this subprotocol alone, and no extension: our 101 has named it before the upstream is asked.
    ///
    /// # Errors
    /// 400 `bad_handshake` if the client has not offered it.
    pub fn narrow(&mut self, wanted: Option<&str>) -> Result<(), Denial> {
        if let Some(wanted) = wanted
            && !self.protocols.iter().any(|offered| **offered == *wanted)
        {
            let detail = format!("this route wants its subprotocol to be offered: new WebSocket(url, [\"{wanted}\"])");
            return Err(Denial::new(Reason::BadHandshake, detail));
        }
        self.protocols = wanted.map(Into::into).into_iter().collect();
        self.extensions.clear();
        Ok(())
    }

    /// Refuses what a browser could not accept whatever the upstream says: a credential as the only subprotocol leaves
    /// nothing to select, and the credential itself is never echoed.
    ///
    /// # Errors
    /// 400 `bad_handshake`, with the call that works.
    pub fn check_answerable<'c>(&self, carrier: Option<&'c Carrier>) -> Result<Answerable<'c>, Denial> {
        match carrier {
            Some(Carrier::Subprotocol { marker: None, example }) if self.protocols.is_empty() => {
                let example = example.as_deref().unwrap_or_default();
                let detail = format!(
                    "the credential is the only subprotocol offered, and it is never echoed: offer a real one beside it, \
                     as in new WebSocket(url, [\"<your protocol>\", \"{example}\"])"
                );
                Err(Denial::new(Reason::BadHandshake, detail))
            }
            _ => Ok(Answerable(carrier)),
        }
    }
}

/// What brought the credential, once it is known that there is an answer to it that a browser takes.
#[derive(Debug, Clone, Copy)]
pub struct Answerable<'c>(Option<&'c Carrier>);

/// What a server answers to this key (RFC 6455 section 4.2.2, step 5.4).
pub fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// A 101 that was checked, and what of it concerns the client.
#[derive(Debug)]
pub struct Switched {
    accept: String,
    protocol: Option<Box<str>>,
    extensions: Option<HeaderValue>,
    headers: HeaderMap,
}

impl Switched {
    pub fn has_extensions(&self) -> bool {
        self.extensions.is_some()
    }
}

/// Checks the upstream's 101 against what was asked for (RFC 6455 section 4.1).
///
/// # Errors
/// What is wrong with it, for the log.
pub fn check_reply(upgrade: &Upgrade, version: u8, headers: HeaderMap) -> Result<Switched, &'static str> {
    if version != 1 {
        return Err("its 101 is not HTTP/1.1");
    }
    let mut to = tokens(&headers, &UPGRADE);
    if !to.next().is_some_and(|token| token.eq_ignore_ascii_case("websocket")) || to.next().is_some() {
        return Err("its 101 does not say Upgrade: websocket");
    }
    drop(to);
    if !tokens(&headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err("its 101 does not say Connection: upgrade");
    }
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        return Err("its 101 claims to have a body");
    }
    let accept = accept(&upgrade.key);
    match only(&headers, &SEC_WEBSOCKET_ACCEPT) {
        Ok(Some(answered)) if answered == accept => {}
        Ok(Some(_)) => return Err("its Sec-WebSocket-Accept is wrong"),
        Ok(None) => return Err("its 101 has no Sec-WebSocket-Accept"),
        Err(Twice) => return Err("its 101 has two Sec-WebSocket-Accept headers"),
    }
    let protocol = match only(&headers, &SEC_WEBSOCKET_PROTOCOL) {
        Ok(None) => None,
        Ok(Some(chosen)) if upgrade.protocols.iter().any(|offered| **offered == *chosen) => Some(chosen.into()),
        Ok(Some(_)) => return Err("it selects a subprotocol that was not offered"),
        Err(Twice) => return Err("it selects two subprotocols"),
    };
    let offered: Vec<&str> = upgrade.extensions.iter().flat_map(extension_names).collect();
    let mut chosen = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let extensions = chosen.next().cloned();
    if chosen.next().is_some() {
        return Err("it answers with two Sec-WebSocket-Extensions headers");
    }
    let was_offered = |name: &str| offered.iter().any(|other| other.eq_ignore_ascii_case(name));
    if extensions.as_ref().is_some_and(|chosen| !extension_names(chosen).all(was_offered)) {
        return Err("it selects an extension that was not offered");
    }
    Ok(Switched { accept, protocol, extensions, headers })
}

/// Our 101 (RFC 6455 section 4.2.2), and the subprotocol that it names. With the upstream's own end-to-end headers.
pub fn accept_answer(
    upgrade: &Upgrade,
    switched: Switched,
    Answerable(carrier): Answerable<'_>,
) -> (Vec<u8>, Option<Box<str>>) {
    let protocol = switched.protocol.or_else(|| match carrier {
        Some(Carrier::Subprotocol { marker: Some(marker), .. }) => Some(marker.clone()),
        Some(Carrier::Subprotocol { marker: None, .. }) => upgrade.protocols.first().cloned(),
        Some(Carrier::Request | Carrier::Basic | Carrier::Cookie | Carrier::TicketCookie) | None => None,
    });
    let mut draft = Answer::of(StatusCode::SWITCHING_PROTOCOLS);
    draft.line("upgrade", b"websocket");
    draft.line("connection", b"Upgrade");
    draft.line("sec-websocket-accept", switched.accept.as_bytes());
    if let Some(protocol) = &protocol {
        draft.line("sec-websocket-protocol", protocol.as_bytes());
    }
    if let Some(extensions) = switched.extensions {
        draft.line("sec-websocket-extensions", extensions.as_bytes());
    }
    draft.pass_on(&switched.headers);
    (draft.switch(), protocol)
}

/// A 101 that is only there to be closed: what page code learns of a refusal (design: `on_failure`). Selects `protocol`,
/// because browsers that offered one fail a connection that selects none.
pub fn decline_answer(key: &str, protocol: Option<&str>, request_id: &str, denial: &Denial) -> Vec<u8> {
    let mut answer = switch(key, protocol, request_id);
    answer.extend(frame::close(denial.close_code(), denial.reason.word(), None));
    answer
}

/// Our own 101 to this key, without an upstream's.
pub fn switch(key: &str, protocol: Option<&str>, request_id: &str) -> Vec<u8> {
    let mut draft = Answer::of(StatusCode::SWITCHING_PROTOCOLS);
    draft.line("upgrade", b"websocket");
    draft.line("connection", b"Upgrade");
    draft.line("sec-websocket-accept", accept(key).as_bytes());
    if let Some(protocol) = protocol {
        draft.line("sec-websocket-protocol", protocol.as_bytes());
    }
    draft.line("x-request-id", request_id.as_bytes());
    draft.switch()
}

fn extension_names(line: &HeaderValue) -> impl Iterator<Item = &str> {
    let items = line.to_str().unwrap_or_default().split(',');
    items.map(|item| item.split(';').next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_key_has_its_own_answer() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
