//! Credentials taken out of requests, against an oracle that counts all that could be one. The input: which places, how,
//! and then a request head.

use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::request::Parts;
use wsbouncer::auth::Kind;
use wsbouncer::auth::credential::{Encoding, Place, Shape, selectable, take};
use wsbouncer::head::whole;

use crate::bytes::{Input, bare, base64, is_token, list};

fn places(which: u8) -> Vec<(Place, Kind)> {
    let pair =
        |any_case, encoding| Place::Subprotocol { shape: Shape::Pair { marker: "token".into(), any_case }, encoding };
    let prefix = |encoding| Place::Subprotocol { shape: Shape::Prefix("key.".into()), encoding };
    let is_odd = which & 1 != 0;
    let all = [
        (Place::Header(HeaderName::from_static("x-api-key")), Kind::Key),
        (Place::Bearer, Kind::Key),
        (Place::Basic, Kind::Key),
        (Place::Query("key".into()), Kind::Key),
        (Place::Cookie("key".into()), Kind::Ticket),
        (pair(is_odd, if which & 2 != 0 { Encoding::Base64Url } else { Encoding::Raw }), Kind::Ticket),
        (prefix(if which & 4 != 0 { Encoding::Base64Url } else { Encoding::Raw }), Kind::Key),
    ];
    let mut some: Vec<_> = all.into_iter().enumerate().filter(|(at, _)| which >> (at + 1) & 1 != 0).collect();
    if is_odd {
        some.reverse();
    }
    some.into_iter().map(|(_, place)| place).collect()
}

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (which, hide) = (input.byte(), input.byte() & 1 != 0);
    let places = places(which);
    let Ok(mut parts) = whole(input.0.to_vec()) else { return };
    let before = parts.clone();
    let mut offered = offer(&parts);
    let all_offered = offered.clone();
    check_selectable(&places, &offered);
    let taken = take(&places, &mut parts, &mut offered, hide);
    // A request with more than one goes nowhere.
    let goes_on = taken.is_ok();
    let wanted = find(&places, &before, all_offered);
    match (taken, wanted) {
        (Err(_), Wanted::Many) => {}
        (Ok(None), Wanted::None(left)) => {
            assert_eq!(offered, left);
            is_rest(&places, &before, &parts, hide);
        }
        (Ok(Some(found)), Wanted::One { place, secret, user, left }) => {
            assert_eq!((found.place(), found.kind()), (place, places[place].1));
            assert_eq!(found.secret().as_bytes(), secret);
            assert_eq!(found.user().map(str::to_owned), user);
            assert_eq!(offered, left);
            is_rest(&places, &before, &parts, hide);
        }
        (taken, wanted) => panic!("{:?} and {wanted:?}", taken.map(|found| found.map(|found| found.place()))),
    }
    if hide && goes_on {
        let again = take(&places, &mut parts, &mut offered, true);
        assert!(again.is_err() || again.is_ok_and(|again| again.is_none()), "something is left");
    }
}

/// What a client offers, if that is a list of subprotocols at all.
fn offer(parts: &Parts) -> Vec<Box<str>> {
    let lines: Vec<&[u8]> = lines(parts, "sec-websocket-protocol");
    let items = list(&lines);
    let is_list = items.iter().all(|item| is_token(item)) && items.len() <= 32;
    let text = |item: &&[u8]| std::str::from_utf8(item).unwrap().into();
    if is_list { items.iter().map(text).collect() } else { Vec::new() }
}

fn lines<'p>(parts: &'p Parts, name: &str) -> Vec<&'p [u8]> {
    parts.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

#[derive(Debug)]
enum Wanted {
    None(Vec<Box<str>>),
    One { place: usize, secret: Vec<u8>, user: Option<String>, left: Vec<Box<str>> },
    Many,
}

/// What stands in one place.
enum There {
    Nothing,
    One(Vec<u8>, Option<String>),
    Many,
}

fn find(places: &[(Place, Kind)], parts: &Parts, mut offered: Vec<Box<str>>) -> Wanted {
    let mut found = Vec::new();
    for (index, (place, _)) in places.iter().enumerate() {
        let there = match place {
            Place::Header(name) => not_empty(lines(parts, name.as_str()).into_iter().map(<[u8]>::to_vec).collect()),
            Place::Bearer => authorization(parts, b"bearer ", |text| (text.to_vec(), None)),
            Place::Basic => authorization(parts, b"basic ", basic),
            Place::Query(name) => not_empty(query(parts.uri.query().unwrap_or_default(), name)),
            Place::Cookie(name) => {
                let values = cookies(parts).into_iter().filter_map(|cookie| value(cookie, name.as_bytes()));
                not_empty(values.map(unquoted).collect())
            }
            Place::Subprotocol { shape: Shape::Pair { marker, any_case }, encoding } => {
                pair(&mut offered, marker, *any_case, *encoding)
            }
            Place::Subprotocol { shape: Shape::Prefix(prefix), encoding } => item(&mut offered, prefix, *encoding),
        };
        match there {
            There::Nothing => {}
            There::One(secret, user) => found.push((index, secret, user)),
            There::Many => return Wanted::Many,
        }
    }
    match found.len() {
        0 => Wanted::None(offered),
        1 => {
            let (place, secret, user) = found.remove(0);
            Wanted::One { place, secret, user, left: offered }
        }
        _ => Wanted::Many,
    }
}

fn not_empty(mut values: Vec<Vec<u8>>) -> There {
    match values.len() {
        0 => There::Nothing,
        1 if values[0].is_empty() => There::Nothing,
        1 => There::One(values.remove(0), None),
        _ => There::Many,
    }
}

fn authorization(parts: &Parts, scheme: &[u8], read: impl Fn(&[u8]) -> (Vec<u8>, Option<String>)) -> There {
    match lines(parts, "authorization")[..] {
        [] => There::Nothing,
        [line] if line.to_ascii_lowercase().starts_with(scheme) && !bare(&line[scheme.len()..]).is_empty() => {
            let (secret, user) = read(bare(&line[scheme.len()..]));
            There::One(secret, user)
        }
        [_] => There::Nothing,
        _ => There::Many,
    }
}

fn basic(text: &[u8]) -> (Vec<u8>, Option<String>) {
    let bytes = base64(text, false).unwrap_or_default();
    let mut halves = bytes.splitn(2, |byte| *byte == b':');
    match (halves.next(), halves.next()) {
        (Some(user), Some(password)) => (password.to_vec(), Some(String::from_utf8_lossy(user).into())),
        _ => (Vec::new(), Some(String::new())),
    }
}

fn query(query: &str, name: &str) -> Vec<Vec<u8>> {
    let params =
        query.split('&').map(|param| param.find('=').map_or((param, ""), |at| (&param[..at], &param[at + 1..])));
    params.filter(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value)).collect()
}

/// Backwards, so that it is not the way it is done there: a code begins where a `%` is followed by two digits.
fn decoded(text: &str) -> Vec<u8> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let code = piece.get(..2).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&piece.as_bytes()[2..]);
            }
            None => bytes.extend([b"%", piece.as_bytes()].concat()),
        }
    }
    bytes
}

fn cookies(parts: &Parts) -> Vec<&[u8]> {
    let all = lines(parts, "cookie").into_iter().flat_map(|line| line.split(|byte| *byte == b';'));
    all.map(bare).filter(|cookie| !cookie.is_empty()).collect()
}

fn value<'c>(cookie: &'c [u8], name: &[u8]) -> Option<&'c [u8]> {
    let at = cookie.iter().position(|byte| *byte == b'=')?;
    (bare(&cookie[..at]) == name).then(|| bare(&cookie[at + 1..]))
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    match value {
        [b'"', inside @ .., b'"'] => inside.to_vec(),
        other => other.to_vec(),
    }
}

fn pair(offered: &mut Vec<Box<str>>, marker: &str, any_case: bool, encoding: Encoding) -> There {
    let is_marker = |item: &str| item == marker || (any_case && item.to_lowercase() == marker);
    let at: Vec<usize> = (0..offered.len()).filter(|at| is_marker(&offered[*at])).collect();
    match at[..] {
        [] => return There::Nothing,
        [only] if only == offered.len() - 1 => return There::Nothing,
        [_] => {}
        [first, second] if second == first + 1 => {}
        _ => return There::Many,
    }
    let two: Vec<Box<str>> = offered.drain(at[0]..at[0] + 2).collect();
    read(two[1].as_bytes(), encoding)
}

fn item(offered: &mut Vec<Box<str>>, prefix: &str, encoding: Encoding) -> There {
    let found: Vec<Box<str>> = offered.iter().filter(|item| item.starts_with(prefix)).cloned().collect();
    match &found[..] {
        [] => There::Nothing,
        [one] => {
            offered.retain(|item| item != one);
            read(&one.as_bytes()[prefix.len()..], encoding)
        }
        _ => There::Many,
    }
}

/// What cannot be read counts, and is the empty secret, which no key has.
fn read(text: &[u8], encoding: Encoding) -> There {
    match encoding {
        Encoding::Raw => not_empty(vec![text.to_vec()]),
        Encoding::Base64Url => match base64(text, true) {
            Some(secret) => not_empty(vec![secret]),
            None => There::One(Vec::new(), None),
        },
    }
}

/// All that is no credential is still there, and nothing of what is.
fn is_rest(places: &[(Place, Kind)], before: &Parts, after: &Parts, hide: bool) {
    assert_eq!(before.uri.path(), after.uri.path());
    let has = |wanted: &Place| hide && places.iter().any(|(place, _)| place == wanted);
    let query_of = |parts: &Parts| parts.uri.query().unwrap_or_default().to_owned();
    let params = query_of(before);
    if has(&Place::Query("key".into())) && !query(&params, "key").is_empty() {
        let kept: Vec<&str> = params.split('&').filter(|param| query(param, "key").is_empty()).collect();
        assert_eq!(query_of(after), kept.join("&"));
    } else {
        assert_eq!(before.uri, after.uri);
    }
    for name in before.headers.keys() {
        let now = lines(after, name.as_str());
        let line = lines(before, name.as_str())[0].to_ascii_lowercase();
        let is_shown = |place: Place, scheme: &[u8]| has(&place) && line.starts_with(scheme);
        let is_of_scheme = is_shown(Place::Bearer, b"bearer ") || is_shown(Place::Basic, b"basic ");
        if has(&Place::Header(name.clone())) || (name == AUTHORIZATION && is_of_scheme) {
            assert!(now.is_empty());
        } else if name == COOKIE && has(&Place::Cookie("key".into())) {
            let kept: Vec<&[u8]> =
                cookies(before).into_iter().filter(|cookie| value(cookie, b"key").is_none()).collect();
            assert_eq!(cookies(after), kept);
        } else {
            assert_eq!(now, lines(before, name.as_str()), "{name}");
        }
    }
}

/// A refusal never echoes a secret, and selects the first item that is none.
fn check_selectable(places: &[(Place, Kind)], offered: &[Box<str>]) {
    let is_secret = |at: usize| {
        places.iter().any(|(place, _)| match place {
            Place::Subprotocol { shape: Shape::Prefix(prefix), .. } => offered[at].starts_with(&**prefix),
            Place::Subprotocol { shape: Shape::Pair { marker, any_case }, .. } => {
                let before = at.checked_sub(1).map(|at| &offered[at]);
                before.is_some_and(|item| item == marker || (*any_case && item.to_lowercase() == **marker))
            }
            _ => false,
        })
    };
    let first = (0..offered.len()).find(|at| !is_secret(*at)).map(|at| &*offered[at]);
    assert_eq!(selectable(places, offered), first);
}
