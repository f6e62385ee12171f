//! May this principal open this tunnel now? Origin, scope and limits: a [`Principal`] in, an [`Admission`] out.

use std::sync::Arc;

use http::HeaderMap;
use http::header::ORIGIN;

use crate::auth::Principal;
use crate::auth::credential::Carrier;
use crate::denial::{Denial, Reason};
use crate::limit::{Counts, Permit, Wanted};
use crate::peer::{Caller, split_host};

/// What a route asks of a principal besides its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `None`: the origin is not looked at.
    pub origins: Option<Vec<Origin>>,
    pub max_connections: Option<u32>,
    pub max_connections_per_key: Option<u32>,
}

/// One of `allowed_origins`, compared part by part (RFC 6454 section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `null`, as sandboxed pages send it.
    Null,
    Exact {
        scheme: Box<str>,
        host: Box<str>,
        port: Option<u16>,
    },
    /// `https://*.example.com`, its host kept as `.example.com`: exactly one label more.
    OneBelow {
        scheme: Box<str>,
        suffix: Box<str>,
        port: Option<u16>,
    },
}

impl Origin {
    /// Reads an origin as it stands in the configuration.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "null" {
            return Ok(Self::Null);
        }
        let (scheme, rest) = text.split_once("://").ok_or("an origin is scheme://host or scheme://host:port")?;
        if rest.contains(['/', '?', '#']) {
            return Err("an origin has no path, not even a trailing slash");
        }
        let scheme = scheme.to_ascii_lowercase();
        if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
            return Err("an origin starts with a scheme such as https://");
        }
        let rest = rest.to_ascii_lowercase();
        let (below, host) = rest.strip_prefix("*.").map_or((false, &*rest), |host| (true, host));
        let (host, port) = split_host(host).ok_or("an origin's host is a name or an address, and perhaps a port")?;
        let port = port.filter(|port| Some(*port) != default_port(&scheme));
        let scheme = scheme.into();
        Ok(if below {
            Self::OneBelow { scheme, suffix: format!(".{host}").into(), port }
        } else {
            Self::Exact { scheme, host: host.into(), port }
        })
    }

    fn allows(&self, sent: &Self) -> bool {
        match (self, sent) {
            (Self::OneBelow { scheme, suffix, port }, Self::Exact { scheme: sent_scheme, host, port: sent_port }) => {
                let label = host.strip_suffix(&**suffix);
                scheme == sent_scheme
                    && port == sent_port
                    && label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
            }
            // What a client sends is never a pattern.
            (_, Self::OneBelow { .. }) => false,
            (allowed, sent) => allowed == sent,
        }
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// Proof that a principal may open a tunnel on a route now. It holds the permits, and they go back when it drops.
#[derive(Debug)]
pub struct Admission {
    principal: Principal,
    route: Arc<str>,
    permit: Permit,
}

impl Admission {
    /// Who may open a tunnel, on which route, and the places that are taken for it.
    pub fn into_parts(self) -> (Principal, Arc<str>, Permit) {
        (self.principal, self.route, self.permit)
    }
}

/// The route, as far as admission needs to know it.
pub struct Door<'r> {
    pub name: &'r Arc<str>,
    pub conditions: &'r Conditions,
}

/// Scope and origin: all that takes no place.
///
/// # Errors
/// 403 `not_allowed_on_route`, `origin_not_allowed`.
pub fn allow(
    door: &Door<'_>,
    principal: &Principal,
    carrier: Option<&Carrier>,
    headers: &HeaderMap,
) -> Result<(), Denial> {
    let id = principal.key().map(|key| key.id.clone());
    if principal.key().is_some_and(|key| !key.opens(door.name)) {
        return Err(Denial::new(Reason::NotAllowedOnRoute, "this key does not open this route").of_key(id));
    }
    check_origin(door.conditions.origins.as_deref(), headers, carrier).map_err(|denial| denial.of_key(id))
}

/// Scope, origin, limits, in this order: what costs nothing and takes nothing first.
///
/// # Errors
/// 403 `not_allowed_on_route`, `origin_not_allowed`; 429 `too_many_connections`.
pub fn admit(
    door: &Door<'_>,
    principal: Principal,
    carrier: Option<&Carrier>,
    headers: &HeaderMap,
    caller: &Caller,
    counts: &Arc<Counts>,
) -> Result<Admission, Denial> {
    allow(door, &principal, carrier, headers)?;
    let id = principal.key().map(|key| key.id.clone());
    let wanted = Wanted {
        route: door.name,
        max_of_route: door.conditions.max_connections,
        key: id.as_ref(),
        secret: principal.secret(),
        max_of_key: principal.key().and_then(|key| key.max_connections),
        max_of_key_on_route: door.conditions.max_connections_per_key,
        address: caller.address,
    };
    let permit = counts.admit(&wanted).map_err(|denial| denial.of_key(id))?;
    Ok(Admission { principal, route: door.name.clone(), permit })
}

/// Whether a page may use what it carries.
///
/// # Errors
/// 403 `origin_not_allowed`.
pub fn check_origin(allowed: Option<&[Origin]>, headers: &HeaderMap, carrier: Option<&Carrier>) -> Result<(), Denial> {
    let deny = |detail: &'static str| Err(Denial::new(Reason::OriginNotAllowed, detail));
    let mut sent = headers.get_all(ORIGIN).iter();
    let Some(origin) = sent.next() else {
        // Only browsers send an Origin, and only browsers send cookies to whoever asks.
        let is_cookie = carrier == Some(&Carrier::Cookie);
        return if is_cookie { deny("a cookie counts only together with an Origin") } else { Ok(()) };
    };
    let Some(allowed) = allowed else {
        // What a browser adds by itself says nothing about who made the page.
        let is_ambient = matches!(carrier, Some(Carrier::Cookie | Carrier::TicketCookie | Carrier::Basic));
        return if is_ambient { deny("a page may use this credential only from allowed_origins") } else { Ok(()) };
    };
    if sent.next().is_some() {
        return deny("the request has two Origin headers");
    }
    let origin = origin.to_str().ok().and_then(|text| Origin::parse(text).ok());
    // Every sandboxed page of every site is `null`, and has the cookies of the user who looks at it.
    let is_cookie = matches!(carrier, Some(Carrier::Cookie | Carrier::TicketCookie));
    let is_anyone = origin == Some(Origin::Null) && is_cookie;
    match origin {
        Some(origin) if !is_anyone && allowed.iter().any(|pattern| pattern.allows(&origin)) => Ok(()),
        _ => deny("pages of this origin may not connect here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, sent: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, sent.parse().unwrap());
        check_origin(Some(&[Origin::parse(pattern).unwrap()]), &headers, None).is_ok()
    }

    #[test]
    fn origins_are_compared_part_by_part() {
        assert!(allows("https://app.example.com", "https://app.example.com"));
        assert!(allows("https://app.example.com", "https://APP.example.com:443"));
        assert!(allows("http://127.0.0.1:8000", "http://127.0.0.1:8000"));
        for sent in [
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "https://evilapp.example.com",
            "https://appxexample.com",
            "https://app.example.com:8443",
            "https://app.example.com/",
            "https://u@app.example.com",
            "null",
            "",
        ] {
            assert!(!allows("https://app.example.com", sent), "{sent}");
        }
    }

    #[test]
    fn a_wildcard_is_one_label() {
        assert!(allows("https://*.example.com", "https://a.example.com"));
        for sent in ["https://example.com", "https://a.b.example.com", "https://.example.com", "https://aexample.com"] {
            assert!(!allows("https://*.example.com", sent), "{sent}");
        }
        assert!(!allows("https://*.example.com", "https://*.example.com"));
    }

    #[test]
    fn what_browsers_add_by_themselves_needs_an_origin() {
        let allowed = [Origin::parse("https://a.example").unwrap(), Origin::Null];
        let may = |allowed, origin: Option<&str>, carrier| {
            let origin = origin.map(|origin| (ORIGIN, origin.parse().unwrap()));
            check_origin(allowed, &origin.into_iter().collect(), Some(&carrier)).is_ok()
        };
        let page = Some("https://a.example");
        assert!(may(Some(&allowed), page, Carrier::Cookie) && may(Some(&allowed), page, Carrier::Basic));
        assert!(!may(Some(&allowed), None, Carrier::Cookie) && may(Some(&allowed), None, Carrier::Basic));
        assert!(
            !may(Some(&allowed), Some("null"), Carrier::Cookie) && may(Some(&allowed), Some("null"), Carrier::Request)
        );
        assert!(
            !may(None, page, Carrier::Basic) && may(None, None, Carrier::Basic) && may(None, page, Carrier::Request)
        );
    }
}
