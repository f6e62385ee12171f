//! Where a credential may stand in a request, and how it is taken out of it.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::request::Parts;
use zeroize::Zeroizing;

use crate::denial::{Denial, Reason};
use crate::secret::{Digest, Secret};

/// What a credential is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The secret of a key.
    Key,
    /// A ticket that this proxy issued.
    Ticket,
}

/// One entry of `extract_from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Header(HeaderName),
    /// `Authorization: Bearer` (RFC 6750 section 2.1).
    Bearer,
    /// `Authorization: Basic` (RFC 7617): the user name is the key's id, the password its secret.
    Basic,
    Subprotocol {
        shape: Shape,
        encoding: Encoding,
    },
    Query(Box<str>),
    Cookie(Box<str>),
}

/// How a credential stands in the list of offered subprotocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A marker, then the credential as the next item.
    Pair { marker: Box<str>, any_case: bool },
    /// One item: the prefix, then the credential.
    Prefix(Box<str>),
}

impl Shape {
    /// Whether this item is a marker, or begins with the prefix.
    fn begins(&self, item: &str) -> bool {
        match self {
            Self::Pair { marker, any_case: false } => *item == **marker,
            Self::Pair { marker, any_case: true } => item.eq_ignore_ascii_case(marker),
            Self::Prefix(prefix) => item.starts_with(&**prefix),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Raw,
    Base64Url,
}

impl Encoding {
    fn example(self) -> &'static str {
        match self {
            Self::Raw => "<key>",
            Self::Base64Url => "<base64url of key>",
        }
    }
}

/// What a caller shows: unverified and secret.
#[derive(Debug)]
pub struct Credential {
    kind: Kind,
    /// Which of the route's places it was in.
    place: usize,
    secret: Secret,
    user: Option<Zeroizing<String>>,
    carrier: Carrier,
}

/// What brought the credential, as far as it matters for the answer and for the origin check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// In the request, by something that page code must have added on purpose.
    Request,
    /// Sent by browsers whoever made the page: wants an allowed origin.
    Cookie,
    /// The same, but for a ticket: browsers do not send it from other sites, and it has a client's own cookie jar to be in.
    TicketCookie,
    /// Sent by browsers too, once it was typed in, and by machines that have no origin.
    Basic,
    /// In the list of subprotocols: a pair's marker as the client wrote it, or what a prefixed item looks like.
    Subprotocol { marker: Option<Box<str>>, example: Option<Box<str>> },
}

impl Credential {
    pub fn new(secret: Secret, carrier: Carrier) -> Self {
        Self { kind: Kind::Key, place: usize::MAX, secret, user: None, carrier }
    }

    /// The index of the place it was in; beyond all of them for one that was not in the request.
    pub fn place(&self) -> usize {
        self.place
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    pub fn digest(&self) -> Digest {
        self.secret.digest()
    }

    pub fn user(&self) -> Option<&str> {
        self.user.as_deref().map(String::as_str)
    }

    fn of_kind(mut self, kind: Kind) -> Self {
        if kind == Kind::Ticket && self.carrier == Carrier::Cookie {
            self.carrier = Carrier::TicketCookie;
        }
        Self { kind, ..self }
    }

    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }
}

/// Takes the one credential out of the request, wherever the route says it may be. With `hide` nothing of it is left to
/// be forwarded; subprotocol items are taken out of `offered` in any case.
///
/// # Errors
/// 400 `conflicting_credentials` when there is more than one, even if they are equal: which one counts must never depend
/// on who reads the request.
pub fn take(
    places: &[(Place, Kind)],
    parts: &mut Parts,
    offered: &mut Vec<Box<str>>,
    hide: bool,
) -> Result<Option<Credential>, Denial> {
    let mut found = None;
    for (index, (place, kind)) in places.iter().enumerate() {
        let taken = match place {
            Place::Header(name) => from_header(parts, name, hide)?,
            Place::Bearer => from_authorization(parts, "bearer", hide)?
                .map(|text| Credential::new(Secret::new(text.to_vec()), Carrier::Request)),
            Place::Basic => from_authorization(parts, "basic", hide)?.map(|text| basic(&text)),
            Place::Query(name) => from_query(parts, name, hide)?,
            Place::Cookie(name) => from_cookie(parts, name, hide)?,
            Place::Subprotocol { shape, encoding } => from_offer(offered, shape, *encoding)?,
        };
        match (&found, taken) {
            (Some(_), Some(_)) => return Err(conflict()),
            (None, Some(taken)) => found = Some(Credential { place: index, ..taken.of_kind(*kind) }),
            (_, None) => {}
        }
    }
    Ok(found)
}

fn conflict() -> Denial {
    Denial::new(Reason::ConflictingCredentials, "the request holds more than one credential; send exactly one")
}

fn plain(secret: Secret, carrier: Carrier) -> Option<Credential> {
    (!secret.is_empty()).then(|| Credential::new(secret, carrier))
}

fn from_header(parts: &mut Parts, name: &HeaderName, hide: bool) -> Result<Option<Credential>, Denial> {
    let mut values = parts.headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(conflict());
    }
    let secret = Secret::new(value.as_bytes());
    if hide {
        parts.headers.remove(name);
    }
    Ok(plain(secret, Carrier::Request))
}

/// What follows the scheme in `Authorization`, when it is this scheme (compared without case, RFC 9110 section 11.1).
fn from_authorization(parts: &mut Parts, scheme: &str, hide: bool) -> Result<Option<Zeroizing<Vec<u8>>>, Denial> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(conflict());
    }
    let bytes = value.as_bytes();
    let (word, rest) = bytes.split_at_checked(scheme.len()).unwrap_or((bytes, b""));
    if !word.eq_ignore_ascii_case(scheme.as_bytes()) || rest.first() != Some(&b' ') {
        return Ok(None);
    }
    let text = Zeroizing::new(rest.trim_ascii().to_vec());
    if hide {
        parts.headers.remove(AUTHORIZATION);
    }
    Ok((!text.is_empty()).then_some(text))
}

/// A credential that cannot be read is still one: it is looked up and found to be unknown.
fn basic(encoded: &[u8]) -> Credential {
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT_PADDING);
    let decoded = Zeroizing::new(STANDARD.decode(encoded).unwrap_or_default());
    let at = decoded.iter().position(|byte| *byte == b':');
    let (user, password) = at.map_or((&b""[..], &b""[..]), |at| (&decoded[..at], &decoded[at + 1..]));
    let user = Some(Zeroizing::new(String::from_utf8_lossy(user).into_owned()));
    Credential { user, ..Credential::new(Secret::new(password), Carrier::Basic) }
}

const LENIENT_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

fn from_query(parts: &mut Parts, name: &str, hide: bool) -> Result<Option<Credential>, Denial> {
    let Some(query) = parts.uri.query() else { return Ok(None) };
    let mut secret = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if percent_decoded(key).as_slice() == name.as_bytes() {
            if secret.is_some() {
                return Err(conflict());
            }
            secret = Some(Secret::new(percent_decoded(value).as_slice()));
        }
    }
    let Some(secret) = secret else { return Ok(None) };
    if hide {
        let kept: Vec<&str> = query.split('&').filter(|pair| !is_param(pair, name)).collect();
        let path = parts.uri.path();
        let target = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
        // Parts of a target that was well-formed make a well-formed target.
        parts.uri = target.parse().map_err(|_| Denial::bad_handshake("the request target is malformed"))?;
    }
    Ok(plain(secret, Carrier::Request))
}

fn is_param(pair: &str, name: &str) -> bool {
    percent_decoded(pair.split_once('=').map_or(pair, |(key, _)| key)).as_slice() == name.as_bytes()
}

/// `%41` becomes `A`; a `+` stays one (RFC 3986 knows no other meaning).
fn percent_decoded(text: &str) -> Zeroizing<Vec<u8>> {
    let bytes = text.as_bytes();
    let mut decoded = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let code = (byte == b'%').then(|| hex(at + 1).zip(hex(at + 2))).flatten();
        match code.and_then(|(high, low)| u8::try_from(high << 4 | low).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

fn from_cookie(parts: &mut Parts, name: &str, hide: bool) -> Result<Option<Credential>, Denial> {
    let cookies = |line: &'_ HeaderValue| -> Vec<Vec<u8>> {
        line.as_bytes().split(|byte| *byte == b';').map(|cookie| cookie.trim_ascii().to_vec()).collect()
    };
    let all: Vec<Vec<u8>> = parts.headers.get_all(COOKIE).iter().flat_map(cookies).collect();
    let value_of = |cookie: &[u8]| -> Option<Vec<u8>> {
        let rest = cookie.strip_prefix(name.as_bytes())?.trim_ascii_start();
        Some(rest.strip_prefix(b"=")?.trim_ascii_start().to_vec())
    };
    let mut values = all.iter().filter_map(|cookie| value_of(cookie));
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(conflict());
    }
    let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(&value);
    let secret = Secret::new(unquoted);
    drop(values);
    if hide {
        let kept: Vec<&[u8]> =
            all.iter().map(Vec::as_slice).filter(|cookie| !cookie.is_empty() && value_of(cookie).is_none()).collect();
        parts.headers.remove(COOKIE);
        if let Ok(line) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
            && !line.is_empty()
        {
            parts.headers.insert(COOKIE, line);
        }
    }
    Ok(plain(secret, Carrier::Cookie))
}

/// Takes a pair or a prefixed item out of the offer. It is never offered upstream: whatever `hide_credentials` says, a
/// subprotocol is there to be chosen, and a chosen secret would be echoed.
fn from_offer(offered: &mut Vec<Box<str>>, shape: &Shape, encoding: Encoding) -> Result<Option<Credential>, Denial> {
    let mut places = offered.iter().enumerate().filter(|(_, item)| shape.begins(item)).map(|(at, _)| at);
    let Some(at) = places.next() else { return Ok(None) };
    // After a marker stands the secret itself, which may look like a marker.
    if places.any(|next| matches!(shape, Shape::Prefix(_)) || next != at + 1) {
        return Err(conflict());
    }
    let (text, carrier) = match shape {
        Shape::Pair { .. } if at + 1 == offered.len() => return Ok(None),
        Shape::Pair { .. } => {
            let secret = offered.remove(at + 1);
            let marker = Some(offered.remove(at));
            (Zeroizing::new(String::from(secret)), Carrier::Subprotocol { marker, example: None })
        }
        Shape::Prefix(prefix) => {
            let item = Zeroizing::new(String::from(offered.remove(at)));
            let carrier =
                Carrier::Subprotocol { marker: None, example: Some(format!("{prefix}{}", encoding.example()).into()) };
            (Zeroizing::new(item[prefix.len()..].to_owned()), carrier)
        }
    };
    let secret = match encoding {
        Encoding::Raw => Secret::new(text.as_bytes()),
        Encoding::Base64Url => {
            const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT_PADDING);
            match URL_SAFE.decode(text.as_bytes()) {
                Ok(decoded) => Secret::new(decoded),
                Err(_) => return Ok(Some(Credential::new(unreadable(), carrier))),
            }
        }
    };
    Ok(plain(secret, carrier))
}

/// The first item of an offer that is no credential, whatever else is wrong with it.
pub fn selectable<'o>(places: &[(Place, Kind)], offered: &'o [Box<str>]) -> Option<&'o str> {
    let is_secret = |at: usize| {
        places.iter().any(|(place, _)| match place {
            Place::Subprotocol { shape: shape @ Shape::Prefix(_), .. } => shape.begins(&offered[at]),
            Place::Subprotocol { shape: shape @ Shape::Pair { .. }, .. } => at > 0 && shape.begins(&offered[at - 1]),
            _ => false,
        })
    };
    (0..offered.len()).find(|at| !is_secret(*at)).map(|at| &*offered[at])
}

/// Stands for a credential that is there and cannot be decoded: looked up like any other, and never found, because no key
/// has an empty secret.
fn unreadable() -> Secret {
    Secret::new("")
}

/// Where one is looked for, as a client has to send it.
pub fn describe(place: &Place, kind: Kind) -> String {
    let what = match kind {
        Kind::Key => "key",
        Kind::Ticket => "ticket",
    };
    match place {
        Place::Header(name) => format!("header {}", canonical(name)),
        Place::Bearer => format!("header Authorization: Bearer <{what}>"),
        Place::Basic => "header Authorization: Basic <base64 of id:key>".into(),
        Place::Query(name) => format!("query parameter {name}"),
        Place::Cookie(name) => format!("cookie {name}"),
        Place::Subprotocol { shape, encoding } => {
            let value = encoding.example().replace("key", what);
            match shape {
                Shape::Pair { marker, .. } => format!("new WebSocket(url, [\"{marker}\", \"{value}\"])"),
                Shape::Prefix(prefix) => {
                    format!("new WebSocket(url, [\"<your protocol>\", \"{prefix}{value}\"])")
                }
            }
        }
    }
}

/// `x-api-key` as people write it: `X-Api-Key`.
fn canonical(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}

/// `WWW-Authenticate` for these places (RFC 9110 section 11.6.1).
pub fn challenge(places: &[(Place, Kind)]) -> &'static str {
    let has = |wanted: &Place| places.iter().any(|(place, _)| place == wanted);
    match (has(&Place::Bearer), has(&Place::Basic)) {
        (true, true) => "Bearer realm=\"wsbouncer\", Basic realm=\"wsbouncer\", charset=\"UTF-8\"",
        (true, false) => "Bearer realm=\"wsbouncer\"",
        (false, true) => "Basic realm=\"wsbouncer\", charset=\"UTF-8\"",
        (false, false) => "ApiKey realm=\"wsbouncer\"",
    }
}
