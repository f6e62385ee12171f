//! Configurations: any text loads or is refused, in little time, and what loads keeps what the documentation promises of it.
//! The input is the file.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use wsbouncer::clock::UnixTime;
use wsbouncer::config::{Config, load_with};
use wsbouncer::secret::Digest;

/// A directory of its own, with files that a configuration may name.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("wsfuzz-{}", std::process::id());
    let shared = PathBuf::from("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let scratch = base.join(name);
    fs::create_dir_all(&scratch).expect("a directory can be made");
    fs::write(scratch.join("keys"), "- id: filed\n  secret: secret-of-filed-key\n").expect("a file can be written");
    fs::write(scratch.join("secret"), "a secret of more than thirty-two bytes\n").expect("a file can be written");
    scratch
});

/// Other files than those are none of ours to read.
const ELSEWHERE: [&[u8]; 4] = [b"/dev", b"/proc", b"/sys", b".."];

pub fn run(data: &[u8]) {
    if ELSEWHERE.iter().any(|name| data.windows(name.len()).any(|window| window == *name)) {
        return;
    }
    let path = SCRATCH.join("config.yaml");
    fs::write(&path, data).expect("a file can be written");
    let env = |name: &str| name.starts_with("SET").then(|| "a value of more than thirty-two bytes".into());
    let now = UnixTime(1_800_000_000);
    let load = || load_with(&path, &env, now);
    match (load(), load()) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one.rules.fingerprint, other.rules.fingerprint);
            assert_eq!(one.settings, other.settings);
            check(&one, data, now);
        }
        (Err(one), Err(other)) => {
            let text = one.to_string();
            assert_eq!(text, other.to_string());
            assert!(!one.is_empty() && text.contains("config.yaml"), "{text}");
        }
        _ => panic!("it loads once only"),
    }
}

fn check(config: &Config, text: &[u8], now: UnixTime) {
    let rules = &config.rules;
    assert!(!config.settings.listen.is_empty());
    let _ = config.warnings.to_string();
    assert!(!rules.routes.is_empty() && rules.fingerprint.len() >= 32);
    if let (Some(admin), None) = (config.settings.admin, &rules.admin_token) {
        // Perhaps in an escape of YAML.
        let is_said = text.contains(&b'\\') || text.windows(12).any(|window| window == b"allow_remote");
        assert!(admin.ip().is_loopback() || is_said, "operators' page open to all");
    }
    // A key with an empty secret would be everybody's.
    assert!(rules.keys.find(&Digest::of(b""), now).is_err());
    for route in rules.routes.all() {
        let found = rules.routes.by_name(&route.name).expect("a route has its name");
        assert!(Arc::ptr_eq(found, route));
        assert!(rules.upstreams.contains(&route.upstream.name));
        assert!(!route.timeouts.connect.is_zero() && !route.timeouts.handshake.is_zero());
        assert!(route.timeouts.handshake <= rules.routes.longest_handshake());
        for limit in [route.conditions.max_connections, route.conditions.max_connections_per_key] {
            assert_ne!(limit, Some(0));
        }
        if let Some(issue) = &route.tickets {
            assert!(issue.path.starts_with('/') && !issue.ttl.is_zero() && issue.ttl.as_secs() <= 3600);
        }
        if let Some(first) = route.verifier.first_message() {
            assert!((1..=65_536).contains(&first.max_bytes) && !first.timeout.is_zero());
        }
    }
    for id in rules.keys.ids() {
        assert!((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "{id}");
    }
    assert!(!rules.head_timeout.is_zero());
    for limit in [rules.limits.max_connections, rules.limits.max_connections_per_address] {
        assert_ne!(limit, Some(0));
    }
}
