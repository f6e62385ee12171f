//! Keys and how they are used: which of two secrets still is, and which can go.

use http::StatusCode;
use serde_json::{Value, json};

use super::answers::{self, Answer};
use super::query::Query;
use crate::auth::api_key::{Key, Keys};
use crate::clock::UnixTime;
use crate::limit::Counts;
use crate::rules::Rules;
use crate::secret::Digest;
use crate::usage::{KeyUse, Removal, Use};

const LISTED: usize = 100;
const MAX_LISTED: usize = 1000;
/// A secret that nobody has shown for a day is probably in nobody's hands.
const QUIET: i64 = 24 * 3600;

const RULE: &str = "safe_to_remove: it was shown once, no tunnel is open with it, nobody has shown it for quiet_seconds, \
and another secret of the key has been used since; or it opens nothing any more";

/// What is asked for.
struct Page {
    limit: usize,
    after: Option<String>,
    id: Option<String>,
    rotating: bool,
    quiet: i64,
}

impl Page {
    fn parse(query: Option<&str>) -> Result<Self, String> {
        let query = Query::parse(query, &["limit", "after", "id", "rotating", "quiet"])?;
        let text = |name| query.get(name).map(str::to_owned);
        Ok(Self {
            limit: query.count("limit", LISTED, MAX_LISTED)?,
            after: text("after"),
            id: text("id"),
            rotating: query.flag("rotating")?,
            quiet: query.seconds("quiet", QUIET)?,
        })
    }

    /// Numbers of the keys of this page, and whether there are more. One pass over the ids, and nothing made of those that
    /// are not on it.
    fn find(&self, keys: &Keys) -> Result<(Vec<usize>, bool), &'static str> {
        let first = match &self.after {
            Some(after) => 1 + keys.ids().position(|id| id == after).ok_or("after: no key has this id\n")?,
            None => 0,
        };
        let is_wanted = |at: &usize| {
            self.id.as_ref().is_none_or(|id| keys.id(*at) == id) && (!self.rotating || keys.secrets(*at) > 1)
        };
        let mut found: Vec<usize> = (first..keys.len()).filter(is_wanted).take(self.limit + 1).collect();
        let more = found.len() > self.limit;
        found.truncate(self.limit);
        Ok((found, more))
    }
}

/// One page of keys, in the order of the files.
pub fn list(rules: &Rules, counts: &Counts, query: Option<&str>) -> Answer {
    let keys = &rules.keys;
    let page = match Page::parse(query) {
        Ok(page) => page,
        Err(why) => return answers::bad_request(why),
    };
    let (found, more) = match page.find(keys) {
        Ok(found) => found,
        Err(why) => return answers::bad_request(why),
    };
    let usage = counts.usage(found.iter().map(|at| keys.id(*at)));
    let times = (UnixTime::now(), counts.since(), page.quiet);
    let listed: Vec<Value> = found.iter().zip(&usage).filter_map(|(at, used)| shown(keys, *at, used, times)).collect();
    let next = found.last().filter(|_| more).map(|at| keys.id(*at));
    answers::json(
        StatusCode::OK,
        &json!({
            "keys": listed,
            "total": keys.len(),
            "next": next,
            "quiet_seconds": page.quiet,
            "watched_since": counts.since().text(),
            "rule": RULE,
        }),
    )
}

type Times = (UnixTime, UnixTime, i64);

fn shown(keys: &Keys, at: usize, used: &KeyUse, times: Times) -> Option<Value> {
    let (key, secrets) = keys.get(at)?;
    let secrets: Vec<(Digest, Option<UnixTime>)> = secrets.collect();
    let now = times.0;
    let mut object = use_json(&used.all);
    object["id"] = json!(&*key.id);
    object["state"] = json!(state(&key, now));
    object["routes"] = json!(key.routes.as_deref().map(|routes| routes.iter().map(|name| &**name).collect::<Vec<_>>()));
    object["not_before"] = json!(key.not_before.map(UnixTime::text));
    object["expires_at"] = json!(key.expires_at.map(UnixTime::text));
    object["max_connections"] = json!(key.max_connections);
    let shown = |secret: &(Digest, _)| secret_json(&key, &secrets, secret, used, times);
    object["secrets"] = secrets.iter().map(shown).collect();
    Some(object)
}

fn state(key: &Key, now: UnixTime) -> &'static str {
    if key.disabled {
        "disabled"
    } else if key.expires_at.is_some_and(|end| end <= now) {
        "expired"
    } else if key.not_before.is_some_and(|start| now < start) {
        "not_yet_valid"
    } else {
        "valid"
    }
}

fn secret_json(
    key: &Key,
    all: &[(Digest, Option<UnixTime>)],
    (digest, own_end): &(Digest, Option<UnixTime>),
    used: &KeyUse,
    times: Times,
) -> Value {
    let now = times.0;
    let of = |digest: &Digest| used.secret(digest).copied().unwrap_or_default();
    let is_past = |end: &Option<UnixTime>| end.is_some_and(|end| end <= now);
    let others = all.iter().filter(|(other, end)| other != digest && !is_past(end));
    let successor = others.filter_map(|(other, _)| of(other).last_used).max();
    let valid_until = [*own_end, key.expires_at].into_iter().flatten().min();
    let this = of(digest);
    let removal = Removal::judge(&this, successor, key.disabled || is_past(&valid_until), times);
    let mut object = use_json(&this);
    object["sha256"] = json!(digest.short());
    object["valid_until"] = json!(valid_until.map(UnixTime::text));
    object["expires_in_seconds"] = json!(valid_until.map(|end| end.0.saturating_sub(now.0).max(0)));
    object["safe_to_remove"] = json!(removal == Removal::Safe);
    object["because"] = json!(removal.word());
    object
}

fn use_json(used: &Use) -> Value {
    json!({
        "open": used.open,
        "opened": used.opened,
        "refused": used.refused,
        "last_used": used.last_used.map(UnixTime::text),
        "last_refused": used.last_refused.map(UnixTime::text),
    })
}
