//! STUB, replaced at the merge.
use crate::rules::*;

use std::path::{Path, PathBuf};
use std::time::Duration;
pub struct Config {
    pub settings: Settings,
    pub rules: Rules,
    pub sources: Sources,
    pub warnings: Problems,
}
pub struct Sources;
impl Sources {
    pub fn looks_changed(&self) -> bool {
        false
    }
    pub fn directories(&self) -> Vec<PathBuf> {
        vec![]
    }
    pub fn digest(&self) -> &str {
        ""
    }
    pub fn len(&self) -> usize {
        1
    }
}
#[derive(Debug)]
pub struct Problems;
impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("x")
    }
}
pub fn load(_p: &Path) -> Result<Config, Problems> {
    use crate::{auth::*, route::*, upstream::*};
    let mut keys = api_key::Keys::default();
    keys.add(
        api_key::Key {
            id: "bench".into(),
            routes: None,
            not_before: None,
            expires_at: None,
            disabled: false,
            max_connections: None,
            attributes: Box::default(),
        },
        &[(crate::secret::Digest::of(b"bench-key-1"), None)],
    )
    .unwrap();
    let route = Route {
        name: "default".into(),
        host: HostPattern::Any,
        path: PathPattern::Any,
        verifier: Verifier::ApiKey(vec![
            Place::Header("x-api-key".parse().unwrap()),
            Place::Subprotocol {
                shape: credential::Shape::Pair { marker: "x-api-key".into(), any_case: false },
                encoding: credential::Encoding::Raw,
            },
        ]),
        conditions: Default::default(),
        hide_credentials: true,
        headers: vec![],
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            idle: Some(Duration::from_secs(3600)),
            max_lifetime: None,
            half_close: Duration::from_secs(30),
        },
        upstream: std::sync::Arc::new(Upstream {
            name: "u".into(),
            endpoint: Endpoint::Address("127.0.0.1:19001".parse().unwrap()),
            host: None,
        }),
    };
    Ok(Config {
        settings: Settings {
            listen: vec!["127.0.0.1:18080".parse().unwrap()],
            admin: Some("127.0.0.1:19901".parse().unwrap()),
        },
        rules: Rules {
            routes: RouteTable::new(vec![route]).unwrap_or_default(),
            upstreams: ["u".into()].into(),
            keys,
            trusted_proxies: Default::default(),
            limits: Default::default(),
            head_timeout: Duration::from_secs(10),
            tcp_keepalive: Some(Duration::from_secs(60)),
            on_revoked: Duration::ZERO,
            on_route_removed: Duration::from_secs(30),
            drain: Drain { timeout: Duration::from_secs(5), spread: Duration::from_secs(1) },
            fingerprint: String::new(),
        },
        sources: Sources,
        warnings: Problems,
    })
}
