//! `auth` and `tickets` of one route: every way in, from the tree to [`schema::Ways`] and [`schema::Issue`].

use super::fields::{Fields, parsed};
use super::problem::{Faults, Path, Wrong, nearest};
use super::schema::{self, Auth, Issue, Section, Ways};
use super::value::{self, Cookie, Encoding, FirstMessage, Format, PathPattern, Place, Shape};
use super::yaml::Node;

/// `auth` and `tickets`, which have to fit together.
pub fn read(fields: &Fields<'_, '_>, faults: &mut Faults) -> (Auth, Option<Issue>) {
    let before = faults.len();
    let issue = fields.get("tickets").and_then(|node| {
        Fields::open(node, &schema::ROUTE_TICKETS, &fields.at.field("tickets"), faults)
            .map(|fields| issue(&fields, faults))
    });
    let Some(listed) = entries(fields, faults) else {
        if issue.is_some() {
            let wrong = Wrong::new("a route that is open to everybody issues no tickets");
            faults.value(&fields.at.field("tickets"), wrong.hint("leave tickets out, or auth: none"));
        }
        return (Auth::None, issue.flatten());
    };
    let has = (listed.key.is_some(), listed.ticket.is_some());
    // Without a word about it, or with a faulty one, a route wants keys.
    let key = listed.key.unwrap_or_else(|| Keyed { places: default_places(), first_message: None });
    let issue = issue.flatten();
    let ticket = match (listed.ticket, &issue) {
        (Some(Some(places)), _) => places,
        (Some(None), Some(issue)) => default_ticket_places(issue),
        (None, Some(issue)) if !has.0 => default_ticket_places(issue),
        _ => Vec::new(),
    };
    if faults.len() == before {
        check_tickets(fields, has, &key.places, &ticket, issue.as_ref(), faults);
    }
    let ways = Ways { key: key.places, first_message: key.first_message, ticket };
    (Auth::Some(ways), issue)
}

/// Tickets are issued, taken, and stand where no key stands.
fn check_tickets(
    fields: &Fields<'_, '_>,
    (key, takes): (bool, bool),
    keys: &[Place],
    tickets: &[Place],
    issue: Option<&Issue>,
    faults: &mut Faults,
) {
    let (auth, own) = (fields.at.field("auth"), fields.at.field("tickets"));
    let wrong = match issue {
        None if takes => Some((
            auth,
            Wrong::new("nobody issues tickets for this route").hint("add tickets: { path: /.wsbouncer/ticket } to it"),
        )),
        Some(_) if takes && !key => Some((
            auth,
            Wrong::new("a ticket is issued for a key, and no key is taken here").hint("add api_key to this list"),
        )),
        Some(_) if tickets.is_empty() => Some((
            own,
            Wrong::new("this route issues tickets and takes none").hint("add ticket to its auth: [api_key, ticket]"),
        )),
        Some(issue)
            if issue.cookie.as_ref().is_some_and(|cookie| !tickets.contains(&Place::Cookie(cookie.name.clone()))) =>
        {
            Some((
                own.field("cookie"),
                Wrong::new("no ticket is taken out of this cookie")
                    .hint("add { cookie: NAME } to extract_from of ticket, or leave extract_from out"),
            ))
        }
        Some(_) if tickets.iter().any(|place| keys.contains(place)) => {
            Some((auth, Wrong::new("a key and a ticket cannot stand in the same place")))
        }
        _ => None,
    };
    if let Some((path, wrong)) = wrong {
        let path = path.place();
        faults.place(path, wrong);
    }
}

/// What the entries of `auth` say.
#[derive(Default)]
struct Listed {
    key: Option<Keyed>,
    /// `Some(None)`: tickets in the usual places.
    ticket: Option<Option<Vec<Place>>>,
}

struct Keyed {
    places: Vec<Place>,
    first_message: Option<FirstMessage>,
}

/// `none`, which is `None`; `api_key`, `{ api_key: ... }`, or a list of such.
fn entries(fields: &Fields<'_, '_>, faults: &mut Faults) -> Option<Listed> {
    let path = fields.at.field("auth");
    let mut listed = Listed::default();
    match fields.get("auth") {
        None => {}
        Some(Node::Text(word)) if word.as_str() == "none" => return None,
        Some(Node::List(items)) => {
            if items.is_empty() {
                let wrong = Wrong::new("this list names no way to prove who is calling");
                faults.value(&path, wrong.hint("leave auth out for API keys, or write auth: none to let everybody in"));
            }
            for (index, item) in items.iter().enumerate() {
                entry(item, &path.item(index), &mut listed, faults);
            }
        }
        Some(node) => entry(node, &path, &mut listed, faults),
    }
    Some(listed)
}

/// One entry of `auth`.
fn entry(node: &Node, path: &Path<'_>, listed: &mut Listed, faults: &mut Faults) {
    let before = (listed.key.is_some(), listed.ticket.is_some());
    let (key, ticket) = match node {
        Node::Text(word) if word.as_str() == "api_key" => {
            (Some(Keyed { places: default_places(), first_message: None }), None)
        }
        Node::Text(word) if word.as_str() == "ticket" => (None, Some(None)),
        Node::Text(word) => return faults.value(path, unknown_kind(word)),
        node => {
            let found = faults.len();
            let Some(fields) = Fields::open(node, &schema::AUTH, path, faults) else { return };
            let key = below(&fields, "api_key", &schema::API_KEY, faults, keyed);
            let ticket = below(&fields, "ticket", &schema::TICKET, faults, |fields, faults| {
                fields.has("extract_from").then(|| places(fields, &schema::TICKET_PLACE, faults).places)
            });
            if key.is_none() == ticket.is_none() && faults.len() == found {
                let wrong = Wrong::new("an entry of this list is one kind");
                faults.value(path, wrong.hint("write { api_key: { extract_from: [...] } }"));
            }
            (key, ticket)
        }
    };
    for (is_again, kind) in [(before.0 && key.is_some(), "api_key"), (before.1 && ticket.is_some(), "ticket")] {
        if is_again {
            let wrong = Wrong::new(format!("there can be only one {kind} entry"));
            faults.value(path, wrong.hint("list all places in its extract_from"));
        }
    }
    listed.key = listed.key.take().or(key);
    listed.ticket = listed.ticket.take().or(ticket);
}

/// A section that may be left out.
fn below<T>(
    fields: &Fields<'_, '_>,
    name: &'static str,
    section: &'static Section,
    faults: &mut Faults,
    read: impl FnOnce(&Fields<'_, '_>, &mut Faults) -> T,
) -> Option<T> {
    let (node, path) = (fields.get(name)?, fields.at.field(name));
    let opened = Fields::open(node, section, &path, faults)?;
    Some(read(&opened, faults))
}

fn unknown_kind(word: &str) -> Wrong {
    if word == "none" {
        return Wrong::new("none stands alone: a route is open, or it is not").hint("write auth: none");
    }
    if schema::AUTH.later.contains(&word) {
        return Wrong::new("this is not supported by this version").hint("use api_key");
    }
    let wrong = Wrong::new("there is no such kind of auth");
    if schema::KEY_PLACE.words.contains(&word) {
        return wrong.hint(format!("write auth: [{{ api_key: {{ extract_from: [{word}] }} }}]"));
    }
    match nearest(word, ["none", "api_key", "ticket"]) {
        Some(near) => wrong.hint(format!("did you mean \"{near}\"?")),
        None => wrong.hint("there are api_key, ticket and none"),
    }
}

fn default_places() -> Vec<Place> {
    let [(_, header), (_, marker)] = schema::DEFAULT_PLACES;
    let header = value::credential_header(header).map(Place::Header);
    header.into_iter().chain([pair(marker)]).collect()
}

fn default_ticket_places(issue: &Issue) -> Vec<Place> {
    let name = schema::DEFAULT_TICKET_NAME;
    let cookie = issue.cookie.as_ref().map(|cookie| Place::Cookie(cookie.name.clone()));
    [Place::Query(name.into()), pair(name)].into_iter().chain(cookie).collect()
}

fn pair(marker: &str) -> Place {
    let shape = Shape::Pair { marker: marker.into(), any_case: false };
    Place::Subprotocol { shape, encoding: Encoding::Raw }
}

fn keyed(fields: &Fields<'_, '_>, faults: &mut Faults) -> Keyed {
    if fields.has("extract_from") {
        places(fields, &schema::KEY_PLACE, faults)
    } else {
        Keyed { places: default_places(), first_message: None }
    }
}

fn places(fields: &Fields<'_, '_>, section: &'static Section, faults: &mut Faults) -> Keyed {
    let mut all = Keyed { places: Vec::new(), first_message: None };
    let mut add = |node: &Node, path: &Path<'_>, faults: &mut Faults| {
        let is_again = match place(node, section, path, faults) {
            None => false,
            Some(Found::First(first)) => all.first_message.replace(first).is_some(),
            Some(Found::Place(place)) => {
                let is_again = all.places.contains(&place);
                all.places.push(place);
                is_again
            }
        };
        if is_again {
            faults.value(path, Wrong::new("this place stands twice").hint("keep one of them"));
        }
    };
    let path = fields.at.field("extract_from");
    match fields.get("extract_from") {
        None => {}
        Some(Node::List(items)) if items.is_empty() => {
            faults
                .value(&path, Wrong::new("this list names no place").hint("leave extract_from out for the usual ones"));
        }
        Some(Node::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                add(item, &path.item(index), faults);
            }
        }
        Some(node) => add(node, &path, faults),
    }
    all
}

enum Found {
    Place(Place),
    First(FirstMessage),
}

/// One entry of `extract_from`.
fn place(node: &Node, section: &'static Section, path: &Path<'_>, faults: &mut Faults) -> Option<Found> {
    let forms = if section.words.is_empty() { TICKET_PLACES } else { PLACES };
    match node {
        Node::Text(word) if section.words.contains(&word.as_str()) => {
            let place = if word.as_str() == "bearer" { Place::Bearer } else { Place::Basic };
            return Some(Found::Place(place));
        }
        Node::Text(_) => {
            let wrong = Wrong::new("there is no such place");
            faults.value(path, wrong.hint(forms));
            return None;
        }
        _ => {}
    }
    let before = faults.len();
    let fields = Fields::open(node, section, path, faults)?;
    let mut found: Vec<Found> = [
        fields.parsed("header", value::credential_header, faults).map(Place::Header),
        fields.parsed("query", value::parameter, faults).map(Place::Query),
        fields.parsed("cookie", value::token, faults).map(Place::Cookie),
        fields.get("subprotocol").and_then(|node| subprotocol(node, &path.field("subprotocol"), faults)),
    ]
    .into_iter()
    .flatten()
    .map(Found::Place)
    .collect();
    if section.fields.iter().any(|field| field.name == "first_message") {
        let first = fields.get("first_message");
        found
            .extend(first.and_then(|node| first_message(node, &path.field("first_message"), faults)).map(Found::First));
    }
    only(found, "one entry is one place", forms, path, before, faults)
}

const PLACES: &str = "there are bearer, basic, { header: NAME }, { subprotocol: ... }, { query: NAME }, { cookie: NAME } \
                      and { first_message: ... }";
const TICKET_PLACES: &str =
    "there are { query: NAME }, { subprotocol: { pair: NAME } }, { cookie: NAME } and { header: NAME }";

/// `graphql-transport-ws`, or a map.
fn first_message(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<FirstMessage> {
    const FORMS: &str = "there are { format: text }, { json: /payload/token } and { preset: graphql-transport-ws }";
    if let Node::Text(word) = node {
        let preset = value::first_message_preset(word).map_err(|wrong| faults.value(path, wrong)).ok()?;
        let fields = Fields::empty(&schema::FIRST_MESSAGE, path);
        return Some(message_of(&fields, Some(preset), None, faults));
    }
    let before = faults.len();
    let fields = Fields::open(node, &schema::FIRST_MESSAGE, path, faults)?;
    let preset = fields.parsed("preset", value::first_message_preset, faults);
    let json = fields.parsed("json", value::json_pointer, faults).map(Format::Json);
    let text = fields.parsed("format", value::message_format, faults);
    if json.is_some() && text.is_some() {
        faults.value(path, Wrong::new("json and format: text cannot stand together").hint(FORMS));
    } else if json.is_none() && text.is_none() && preset.is_none() && faults.len() == before {
        faults.value(path, Wrong::new("this must say where in the message the key is").hint(FORMS));
    }
    Some(message_of(&fields, preset, json.or(text), faults))
}

/// What is written counts, then what a preset says.
fn message_of(
    fields: &Fields<'_, '_>,
    preset: Option<(&'static str, Format)>,
    format: Option<Format>,
    faults: &mut Faults,
) -> FirstMessage {
    let max_bytes = fields.parsed_or_default("max_bytes", value::message_size, faults);
    FirstMessage {
        subprotocol: fields
            .parsed("subprotocol", value::token, faults)
            .or_else(|| preset.as_ref().map(|(name, _)| (*name).into())),
        forward: if fields.has("forward") { fields.flag("forward", faults) } else { preset.is_some() },
        format: format.or_else(|| preset.map(|(_, format)| format)).unwrap_or(Format::Text),
        timeout: fields.some_duration("timeout", faults),
        max_bytes,
    }
}

fn subprotocol(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Place> {
    const FORMS: &str = "there are { pair: x-api-key }, { prefix: \"key.\" } and { preset: kubernetes }";
    let before = faults.len();
    let fields = Fields::open(node, &schema::SUBPROTOCOL, path, faults)?;
    let encoding = fields.parsed_or_default("encoding", value::encoding, faults);
    let preset = fields.parsed("preset", value::preset, faults);
    if preset.is_some() && fields.has("encoding") {
        let wrong = Wrong::new("a preset has its own encoding");
        faults.value(&path.field("encoding"), wrong.hint("leave encoding out"));
    }
    let pair = fields.parsed("pair", value::token, faults);
    let prefix = fields.parsed("prefix", value::token, faults);
    let shapes = [
        pair.map(|marker| (Shape::Pair { marker, any_case: false }, encoding)),
        prefix.map(|prefix| (Shape::Prefix(prefix), encoding)),
        preset,
    ];
    let found = only(shapes.into_iter().flatten().collect(), "give one of them", FORMS, path, before, faults);
    found.map(|(shape, encoding)| Place::Subprotocol { shape, encoding })
}

/// The only one of the alternatives that a map may hold.
fn only<T>(
    mut found: Vec<T>,
    says: &'static str,
    hint: &'static str,
    path: &Path<'_>,
    before: usize,
    faults: &mut Faults,
) -> Option<T> {
    if found.len() != 1 && faults.len() == before {
        faults.value(path, Wrong::new(says).hint(hint));
    }
    if found.is_empty() { None } else { Some(found.swap_remove(0)) }
}

/// `tickets` of a route. `None` where it cannot be read.
fn issue(fields: &Fields<'_, '_>, faults: &mut Faults) -> Option<Issue> {
    let path = fields.required("path", "write path: /.wsbouncer/ticket", faults);
    let path = path.and_then(|node| parsed(node, &fields.at.field("path"), desk_path, faults));
    let ttl = fields.parsed("ttl", value::ticket_ttl, faults);
    let cookie = fields.get("cookie").and_then(|node| cookie(node, &fields.at.field("cookie"), faults));
    let bind = fields.texts("bind", faults, value::ticket_bind).unwrap_or_default();
    let has = |word| bind.contains(&word);
    Some(Issue { path: path?, ttl, cookie, bind_origin: has("origin"), bind_address: has("address") })
}

fn desk_path(text: &str) -> Result<Box<str>, Wrong> {
    match value::path_pattern(text)? {
        PathPattern::Exact(path) => Ok(path),
        PathPattern::Any | PathPattern::Prefix(_) => {
            Err(Wrong::new("tickets are issued at one path").hint("write /.wsbouncer/ticket, without a *"))
        }
    }
}

/// The name, or a map with it.
fn cookie(node: &Node, path: &Path<'_>, faults: &mut Faults) -> Option<Cookie> {
    if let Node::Text(_) = node {
        return parsed(node, path, value::token, faults).map(|name| Cookie { name, secure: true });
    }
    let fields = Fields::open(node, &schema::TICKET_COOKIE, path, faults)?;
    let name = fields.required("name", "write name: wsbouncer_ticket", faults);
    let name = name.and_then(|node| parsed(node, &path.field("name"), value::token, faults));
    let secure = fields.flag("secure", faults);
    name.map(|name| Cookie { name, secure })
}
