//! The file as types, and the one table of its fields. No behaviour.
//!
//! The table is what the decoder asks for, what unknown names are compared with, what decides whether a value may be shown
//! in a diagnostic, and what `config/reference.yaml` is checked against.

mod types;

pub use self::types::{Auth, File, From, Header, Issue, Key, KeySecret, Route, Tickets, To, Upstream, Ways};

/// One map of the file.
#[derive(Debug)]
pub struct Section {
    pub fields: &'static [Field],
    /// Single words that may stand in place of the map.
    pub words: &'static [&'static str],
    /// Fields that the design knows and this version does not.
    pub later: &'static [&'static str],
    /// Lists that may stand without a value: whoever deletes the last item of one means that there is none.
    pub may_be_empty: &'static [&'static str],
    /// Whether secrets live here: then even a name may be one that slipped, and only known names are shown.
    pub private: bool,
}

/// One field of a map.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    /// As it would be written; the decoder parses this very text. Empty where there is none.
    pub default: &'static str,
    pub below: Below,
    pub shown: Shown,
}

/// Whether diagnostics may show a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Yes,
    /// If it looks like a name: it stands beside secrets, and may have been swapped with one.
    IfName,
    /// If it looks like a number, a date, or true or false.
    IfNumber,
    No,
}

/// What stands under a field.
#[derive(Debug)]
pub enum Below {
    Value,
    /// A map with this section's fields, or a list of such maps.
    Section(&'static Section),
    /// One value for both directions, or a map with one for each.
    EachWay(&'static Section),
    /// A map from names that the operator chooses to such a thing.
    Named(&'static Self),
    /// A map from names that the operator chooses to text; whether diagnostics may show the names.
    Texts {
        names_shown: bool,
    },
}

const fn value(name: &'static str, default: &'static str) -> Field {
    Field { name, default, below: Below::Value, shown: Shown::Yes }
}

const fn number(name: &'static str, default: &'static str) -> Field {
    Field { name, default, below: Below::Value, shown: Shown::IfNumber }
}

const fn each_way(name: &'static str) -> Field {
    Field { name, default: "", below: Below::EachWay(&EACH_WAY), shown: Shown::Yes }
}

/// The same beside secrets.
const fn each_way_number(name: &'static str) -> Field {
    Field { name, default: "", below: Below::EachWay(&EACH_WAY_NUMBER), shown: Shown::IfNumber }
}

const fn section(name: &'static str, below: &'static Section) -> Field {
    Field { name, default: "", below: Below::Section(below), shown: Shown::Yes }
}

const fn hidden(name: &'static str, below: Below) -> Field {
    Field { name, default: "", below, shown: Shown::No }
}

const fn fields(fields: &'static [Field]) -> Section {
    Section { fields, words: &[], later: &[], may_be_empty: &[], private: false }
}

pub static FILE: Section = Section {
    later: &["tls", "proxy_protocol"],
    may_be_empty: &["keys", "key_files"],
    ..fields(&[
        section("listen", &LISTEN),
        Field { name: "admin", default: "127.0.0.1:9901", below: Below::Section(&ADMIN), shown: Shown::Yes },
        value("trusted_proxies", ""),
        value("upstream", ""),
        Field { name: "upstreams", default: "", below: Below::Named(&Below::Section(&UPSTREAM)), shown: Shown::Yes },
        hidden("keys", Below::Section(&KEY)),
        value("key_files", ""),
        section("tickets", &TICKETS),
        section("routes", &ROUTE),
        section("limits", &LIMITS),
        section("timeouts", &TIMEOUTS),
        section("live_connections", &LIVE_CONNECTIONS),
        section("drain", &DRAIN),
        section("telemetry", &TELEMETRY),
    ])
};

/// A key file that is a map rather than a list.
pub static KEY_FILE: Section =
    Section { may_be_empty: &["keys"], private: true, ..fields(&[hidden("keys", Below::Section(&KEY))]) };

pub static LISTEN: Section = Section { later: &["tls", "proxy_protocol"], ..fields(&[value("address", "")]) };

pub static ADMIN: Section = Section {
    words: &["off"],
    ..fields(&[value("address", ""), hidden("token", Below::Section(&ADMIN_TOKEN)), value("allow_remote", "false")])
};

/// What operators show, or its digest.
pub static ADMIN_TOKEN: Section = Section {
    private: true,
    ..fields(&[
        hidden("sha256", Below::Value),
        hidden("plain", Below::Value),
        hidden("env", Below::Value),
        hidden("file", Below::Value),
    ])
};

pub static UPSTREAM: Section =
    Section { later: &["endpoints", "balance", "tls", "health"], ..fields(&[value("url", ""), value("host", "keep")]) };

pub static KEY: Section = Section {
    private: true,
    ..fields(&[
        Field { name: "id", default: "", below: Below::Value, shown: Shown::IfName },
        hidden("secret", Below::Value),
        hidden("secrets", Below::Section(&SECRET)),
        hidden("routes", Below::Value),
        number("not_before", ""),
        number("expires_at", ""),
        number("disabled", "false"),
        number("max_connections", ""),
        hidden("limits", Below::Section(&KEY_LIMITS)),
        hidden("attributes", Below::Texts { names_shown: false }),
    ])
};

pub static SECRET: Section = Section {
    private: true,
    ..fields(&[
        hidden("sha256", Below::Value),
        hidden("plain", Below::Value),
        hidden("env", Below::Value),
        hidden("file", Below::Value),
        number("valid_until", ""),
    ])
};

pub static ROUTE: Section = Section {
    later: &["priority", "tls"],
    ..fields(&[
        value("name", ""),
        value("host", ""),
        value("path", ""),
        value("upstream", ""),
        section("auth", &AUTH),
        section("tickets", &ROUTE_TICKETS),
        value("allowed_origins", ""),
        value("hide_credentials", "true"),
        value("on_failure", "http"),
        value("http", "refuse"),
        value("strict_frames", "false"),
        hidden("identity_headers", Below::Texts { names_shown: true }),
        hidden("set_headers", Below::Texts { names_shown: true }),
        section("limits", &ROUTE_LIMITS),
        section("timeouts", &ROUTE_TIMEOUTS),
    ])
};

pub static AUTH: Section = Section {
    words: &["none"],
    later: &["jwt", "forward_auth", "client_certificate"],
    ..fields(&[section("api_key", &API_KEY), section("ticket", &TICKET)])
};

pub static API_KEY: Section = fields(&[section("extract_from", &KEY_PLACE)]);

pub static TICKET: Section = fields(&[section("extract_from", &TICKET_PLACE)]);

/// Who signs tickets.
pub static TICKETS: Section = fields(&[hidden("secrets", Below::Section(&TICKET_SECRET)), value("ttl", "30s")]);

pub static TICKET_SECRET: Section = Section {
    private: true,
    ..fields(&[hidden("plain", Below::Value), hidden("env", Below::Value), hidden("file", Below::Value)])
};

/// Where and how a route issues them.
pub static ROUTE_TICKETS: Section =
    fields(&[value("path", ""), value("ttl", ""), section("cookie", &TICKET_COOKIE), value("bind", "")]);

pub static TICKET_COOKIE: Section = fields(&[value("name", ""), value("secure", "true")]);

pub static KEY_PLACE: Section = Section {
    words: &["bearer", "basic"],
    ..fields(&[
        value("header", ""),
        section("subprotocol", &SUBPROTOCOL),
        value("query", ""),
        value("cookie", ""),
        section("first_message", &FIRST_MESSAGE),
    ])
};

pub static TICKET_PLACE: Section =
    fields(&[value("header", ""), section("subprotocol", &SUBPROTOCOL), value("query", ""), value("cookie", "")]);

pub static FIRST_MESSAGE: Section = Section {
    words: &["graphql-transport-ws"],
    ..fields(&[
        value("preset", ""),
        value("format", ""),
        value("json", ""),
        value("subprotocol", ""),
        value("forward", "false"),
        value("timeout", "5s"),
        value("max_bytes", "4KiB"),
    ])
};

pub static SUBPROTOCOL: Section =
    fields(&[value("pair", ""), value("prefix", ""), value("preset", ""), value("encoding", "raw")]);

pub static ROUTE_LIMITS: Section = fields(&[
    value("max_connections", ""),
    value("max_connections_per_key", ""),
    value("max_request_body", "16MiB"),
    each_way("max_message_bytes"),
    each_way("messages_per_second"),
    each_way("message_burst"),
    each_way("bytes_per_second"),
    each_way("byte_burst"),
    value("on_excess", "close"),
]);

pub static KEY_LIMITS: Section = Section {
    private: true,
    ..fields(&[
        each_way_number("max_message_bytes"),
        each_way_number("messages_per_second"),
        each_way_number("message_burst"),
        each_way_number("bytes_per_second"),
        each_way_number("byte_burst"),
        number("on_excess", "close"),
    ])
};

pub static EACH_WAY: Section = fields(&[value("up", ""), value("down", "")]);

pub static EACH_WAY_NUMBER: Section = Section { private: true, ..fields(&[number("up", ""), number("down", "")]) };

pub static ROUTE_TIMEOUTS: Section = fields(&[
    value("connect", "5s"),
    value("handshake", "10s"),
    value("idle", "1h"),
    value("max_lifetime", "off"),
    value("half_close", "30s"),
    value("write_stall", "1m"),
    value("ping_interval", "off"),
    value("ping_timeout", "10s"),
]);

pub static LIMITS: Section = fields(&[
    value("max_connections", ""),
    value("max_connections_per_address", ""),
    value("max_pending_per_address", ""),
    value("max_pending_per_key", ""),
    value("max_failed_attempts_per_minute", ""),
    value("max_declined", "1000"),
    value("max_declined_per_address", "250"),
    value("max_waiting", "1000"),
    value("max_waiting_per_address", "250"),
]);

pub static TIMEOUTS: Section = fields(&[value("head", "10s"), value("tcp_keepalive", "60s")]);

pub static LIVE_CONNECTIONS: Section =
    fields(&[section("on_revoked", &ON_REVOKED), section("on_route_removed", &ON_ROUTE_REMOVED)]);

pub static ON_REVOKED: Section = fields(&[value("after", "0s")]);

pub static ON_ROUTE_REMOVED: Section = fields(&[value("after", "30s")]);

pub static DRAIN: Section = fields(&[value("timeout", "60s"), value("spread", "30s")]);

pub static TELEMETRY: Section = fields(&[section("otlp", &OTLP)]);

pub static OTLP: Section = fields(&[value("endpoint", "")]);

/// What an api_key entry looks for when it does not say.
pub const DEFAULT_PLACES: [(&str, &str); 2] = [("header", "X-Api-Key"), ("pair", "x-api-key")];
/// What a ticket is looked for as, in the query and in the subprotocol list, by a route that does not say.
pub const DEFAULT_TICKET_NAME: &str = "ticket";
/// The identity header of a route that names none.
pub const DEFAULT_IDENTITY: (&str, &str) = ("X-Auth-Key-Id", "{id}");
