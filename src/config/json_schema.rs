//! The table of fields as a JSON Schema (draft 2020-12), for editors: names and forms, with what the reference says of
//! each. What does not fit together (a name that is nobody's, a date in the past) only `check` sees.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::schema::{self, Below, Field, Section};

/// What explains every field.
const REFERENCE: &str = include_str!("../../config/reference.yaml");

/// The whole schema.
pub fn schema() -> Value {
    let said = said();
    let mut root = object(&schema::FILE, "", &said);
    let head = [
        ("$schema", json!("https://json-schema.org/draft/2020-12/schema")),
        ("title", json!("wsbouncer")),
        ("description", json!("The configuration of wsbouncer, a reverse proxy that authenticates WebSocket upgrades")),
    ];
    if let Value::Object(root) = &mut root {
        root.extend(head.map(|(name, value)| (name.to_owned(), value)));
    }
    root
}

/// The text below each `## path` of the reference.
fn said() -> HashMap<&'static str, String> {
    let mut said: HashMap<&str, String> = HashMap::new();
    let mut open = None;
    for line in REFERENCE.lines().map(str::trim) {
        match (line.strip_prefix("## "), line.strip_prefix("# "), open) {
            (Some(path), ..) => {
                open = Some(path);
                said.insert(path, String::new());
            }
            // Examples in YAML are indented further.
            (_, Some(more), Some(path)) if !more.starts_with(' ') => {
                let text = said.entry(path).or_default();
                text.push_str(if text.is_empty() { "" } else { " " });
                text.push_str(more);
            }
            (_, Some(_), Some(_)) => {}
            _ => open = None,
        }
    }
    said
}

fn object(section: &Section, path: &str, said: &HashMap<&str, String>) -> Value {
    let mut properties = Map::new();
    for field in section.fields {
        let path = format!("{path}{}", field.name);
        let mut form = form(field, &path, said);
        if let (Value::Object(form), Some(text)) = (&mut form, said.get(&*path)) {
            form.insert("description".into(), json!(text));
            if !field.default.is_empty() && matches!(field.below, Below::Value) {
                form.insert("default".into(), default(field.default));
            }
        }
        properties.insert(field.name.into(), form);
    }
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let Some((_, required)) = REQUIRED.iter().find(|(of, _)| *of == path) {
        object["required"] = json!(required);
    }
    if ONE_OF.contains(&path) {
        object["minProperties"] = json!(1);
        object["maxProperties"] = json!(1);
    }
    object
}

fn default(text: &str) -> Value {
    match text {
        "true" => json!(true),
        "false" => json!(false),
        _ => text.parse::<u32>().map_or_else(|_| json!(text), |number| json!(number)),
    }
}

/// Fields that must be there, by the path of their map.
const REQUIRED: &[(&str, &[&str])] = &[
    ("", &["listen"]),
    ("listen.", &["address"]),
    ("admin.", &["address"]),
    ("upstreams.NAME.", &["url"]),
    ("keys.", &["id"]),
    ("routes.", &["upstream"]),
    ("routes.tickets.", &["path"]),
    ("routes.tickets.cookie.", &["name"]),
    ("telemetry.otlp.", &["endpoint"]),
];

/// Maps of which one field stands at a time.
const ONE_OF: &[&str] = &[
    "routes.auth.",
    "routes.auth.api_key.extract_from.",
    "routes.auth.ticket.extract_from.",
    "tickets.secrets.",
    "admin.token.",
];

fn form(field: &Field, path: &str, said: &HashMap<&str, String>) -> Value {
    let below = |section: &Section| object(section, &format!("{path}."), said);
    match &field.below {
        Below::Value => leaf(path, field.name),
        Below::Texts { .. } => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Below::Named(inner) => {
            let inner = match inner {
                Below::Section(section) => object(section, &format!("{path}.NAME."), said),
                _ => json!({}),
            };
            json!({ "type": "object", "additionalProperties": { "anyOf": [text(), inner] } })
        }
        Below::EachWay(section) => {
            json!({ "anyOf": [leaf(path, field.name), each_way(section, path, field.name, said)] })
        }
        Below::Section(section) => around(path, field.name, section.words, below(section)),
    }
}

/// A map with a value for each direction.
fn each_way(section: &Section, path: &str, name: &str, said: &HashMap<&str, String>) -> Value {
    let mut map = object(section, &format!("{path}."), said);
    let description = "Of this direction: up is from the client, down is to it";
    for field in section.fields {
        let mut form = leaf(path, name);
        form["description"] = json!(description);
        map["properties"][field.name] = form;
    }
    map["minProperties"] = json!(1);
    map
}

/// The forms that a section may have in place of its map.
fn around(path: &str, name: &str, words: &[&str], map: Value) -> Value {
    let list = |item: &Value| json!({ "type": "array", "items": item, "minItems": 1 });
    match name {
        "keys" | "routes" if !path.contains('.') => {
            let mut all = list(&map);
            if name == "keys" {
                // Whoever deletes the last key means that there is none.
                all = json!({ "type": ["array", "null"], "items": map });
            }
            all
        }
        "secrets" => list(&map),
        "listen" => {
            let one = json!({ "anyOf": [text(), map] });
            json!({ "anyOf": [one, list(&one)] })
        }
        "auth" => {
            let one = json!({ "anyOf": [{ "enum": ["api_key", "ticket"] }, map] });
            json!({ "anyOf": [{ "enum": ["none", "api_key", "ticket"] }, map, list(&one)] })
        }
        "extract_from" => {
            let one = if words.is_empty() { map } else { json!({ "anyOf": [{ "enum": words }, map] }) };
            json!({ "anyOf": [one, list(&one)] })
        }
        "admin" | "cookie" => json!({ "anyOf": [text(), map] }),
        _ if !words.is_empty() => json!({ "anyOf": [{ "enum": words }, map] }),
        _ => map,
    }
}

fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

/// What stands behind a field that has nothing below it.
fn leaf(path: &str, name: &str) -> Value {
    const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
    const DURATION_OR_OFF: &str = "^([0-9]+(ms|s|m|h|d)|off)$";
    let pattern = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match name {
        "idle" | "max_lifetime" | "tcp_keepalive" | "ping_interval" | "write_stall" => pattern(DURATION_OR_OFF),
        "connect" | "handshake" | "half_close" | "head" | "after" | "timeout" | "spread" | "ttl" | "ping_timeout" => {
            pattern(DURATION)
        }
        "max_bytes" | "max_request_body" | "max_message_bytes" | "bytes_per_second" | "byte_burst" => {
            pattern("^[0-9]+(B|KiB|MiB|GiB)$")
        }
        name if name.starts_with("max_") || name.starts_with("message") => {
            json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
        }
        "disabled" | "hide_credentials" | "allow_remote" | "forward" | "secure" | "strict_frames" => {
            json!({ "type": "boolean" })
        }
        "valid_until" | "not_before" | "expires_at" => pattern("^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].+)?$"),
        "sha256" => pattern("^[0-9A-Fa-f]{64}$"),
        "trusted_proxies" | "allowed_origins" => json!({ "type": "array", "items": text() }),
        "key_files" => json!({ "type": ["array", "null"], "items": text() }),
        "bind" => json!({ "type": "array", "items": { "enum": ["origin", "address"] } }),
        "routes" if path == "keys.routes" => json!({ "type": "array", "items": text() }),
        "http" => json!({ "enum": ["refuse", "forward"] }),
        "on_failure" => json!({ "enum": ["http", "close", "auto"] }),
        "on_excess" => json!({ "enum": ["close", "delay"] }),
        "encoding" => json!({ "enum": ["raw", "base64url"] }),
        "format" => json!({ "enum": ["text"] }),
        "preset" if path.contains("first_message") => json!({ "enum": ["graphql-transport-ws"] }),
        "preset" => json!({ "enum": ["kubernetes", "openai", "deepgram", "bearer"] }),
        "host" if path.starts_with("upstreams.") => json!({ "enum": ["keep", "upstream"] }),
        "path" => pattern("^/"),
        "endpoint" => pattern("^http://"),
        "json" => pattern("^/"),
        _ => text(),
    }
}
