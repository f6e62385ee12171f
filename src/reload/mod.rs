//! Keeps the rules in step with the files they are made of. Content decides, by polling; directory events, SIGHUP and the
//! admin listener only make it look at once. A file that cannot be read changes nothing.

mod loader;
mod status;
mod watch;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use self::loader::Loader;
pub use self::status::{Attempt, Status};
use self::watch::Watch;
use crate::clock::UnixTime;
use crate::config::{self, Config, Problems, Sources};
use crate::end::Cause;
use crate::log;
use crate::notify_socket::NotifySocket;
use crate::proxy::Proxy;
use crate::rules::{Rules, Settings};
use crate::tunnels::Live;

/// How often files are looked at when no event says so.
const POLL: Duration = Duration::from_secs(1);
/// Files have to stay as they are for this long before they count, because editors and copies write in pieces.
const SETTLE: Duration = Duration::from_millis(60);
/// ... and what never comes to rest is taken as it is after this many looks.
const MAX_LOOKS: u32 = 20;

/// Asks for a reload now; the answer is the status after it.
pub type Ask = oneshot::Sender<Status>;

pub struct Reloader {
    path: PathBuf,
    /// What runs: listeners are not rebound.
    settings: Settings,
    sources: Arc<Sources>,
    proxy: Arc<Proxy>,
    loader: Loader,
    /// Rules that are no longer in force, while some handshake still goes by them.
    outgoing: Vec<Arc<Rules>>,
    status: Arc<Mutex<Status>>,
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    hangup: Option<Signal>,
    watcher: Watch,
    /// The warnings of the last load that was taken over, which were said then.
    warned: HashSet<String>,
    notify: Arc<NotifySocket>,
}

/// A configuration of many mistakes is not told line by line: `check` prints them all.
const MAX_WARNINGS: usize = 20;

impl Reloader {
    pub fn new(
        path: PathBuf,
        settings: Settings,
        sources: Sources,
        proxy: Arc<Proxy>,
        notify: Arc<NotifySocket>,
    ) -> Self {
        let status = Status::first(sources.paths().map(Path::to_owned).collect(), &proxy);
        proxy.metrics.loaded(false);
        // As early as can be: until SIGHUP has its meaning, it ends the process.
        let hangup = signal(SignalKind::hangup());
        let hangup = hangup.inspect_err(|error| warn!(%error, "SIGHUP will not reload")).ok();
        let mut watcher = Watch::new();
        watcher.follow(sources.directories());
        let status = Arc::new(Mutex::new(status));
        let warned = HashSet::new();
        let (sources, loader, outgoing, asks) = (Arc::new(sources), Loader::default(), Vec::new(), mpsc::channel(8));
        Self { path, settings, sources, proxy, loader, outgoing, status, asks, hangup, watcher, warned, notify }
    }

    /// Logs what is allowed and probably not meant, unless the last load said so too.
    pub fn warn(&mut self, warnings: &Problems) {
        let lines: Vec<String> = warnings.lines().take(MAX_WARNINGS).collect();
        for warning in lines.iter().filter(|line| !self.warned.contains(*line)) {
            warn!(warning, "warning");
        }
        self.warned = lines.into_iter().collect();
    }

    /// What runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn status(&self) -> Arc<Mutex<Status>> {
        self.status.clone()
    }

    pub fn asks(&self) -> mpsc::Sender<Ask> {
        self.asks.0.clone()
    }

    /// Runs for as long as the process.
    pub async fn run(mut self) {
        self.notify.say(&format!("READY=1\n{}", self.serving()));
        let mut tick = interval(POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let on_hangup = async {
                match &mut self.hangup {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ask = self.asks.1.recv() => {
                    self.reload().await;
                    if let Some(ask) = ask {
                        let _ = ask.send(self.current_status());
                    }
                }
                _ = on_hangup => self.reload().await,
                () = self.watcher.nudged() => self.look().await,
                _ = tick.tick() => {
                    self.look().await;
                    self.let_go().await;
                }
            }
        }
    }

    /// Reloads if a file has changed and come to rest.
    async fn look(&mut self) {
        if !self.looks_changed(self.sources.clone()).await {
            return;
        }
        let mut loaded = self.load().await;
        for _ in 0..MAX_LOOKS {
            sleep(SETTLE).await;
            let sources = match &loaded {
                Ok(loaded) => Some(loaded.sources.clone()),
                Err(faulty) => faulty.sources.clone(),
            };
            let Some(sources) = sources else { break };
            if !self.looks_changed(sources).await {
                break;
            }
            if let Ok(loaded) = loaded {
                self.outgoing.push(loaded.rules);
            }
            loaded = self.load().await;
        }
        self.take(loaded, false).await;
    }

    async fn reload(&mut self) {
        self.notify.say("RELOADING=1");
        let loaded = self.load().await;
        self.take(loaded, true).await;
        self.notify.say("READY=1");
    }

    async fn looks_changed(&mut self, sources: Arc<Sources>) -> bool {
        // What cannot be looked at has to be read.
        self.loader.run(move || sources.looks_changed()).await.unwrap_or(true)
    }

    async fn load(&mut self) -> Result<Loaded, Faulty> {
        let path = self.path.clone();
        let load = move || config::load(&path).map(Loaded::from).map_err(Faulty::from);
        let loaded = self.loader.run(load).await;
        loaded.unwrap_or_else(|| Err(Faulty { count: 1, text: "the loader failed".into(), sources: None }))
    }

    /// Takes over what was loaded, or says why not. Without a change of content there is nothing to say, unless somebody
    /// asked.
    async fn take(&mut self, loaded: Result<Loaded, Faulty>, asked: bool) {
        let Loaded { settings, rules, sources, warnings } = match loaded {
            Ok(loaded) => loaded,
            Err(faulty) => return self.refuse(faulty),
        };
        let is_new = sources.digest() != self.proxy.rules.load().fingerprint;
        let rules = self.with_token(rules, &settings);
        self.watcher.follow(sources.directories());
        self.sources = sources;
        let was_bad = !self.current_status().ok;
        if !is_new && !was_bad && !asked {
            debug!("files were touched, and say what they said");
            self.outgoing.push(rules);
            return self.let_go().await;
        }
        let restart_needed = differences(&self.settings, &settings);
        self.proxy.metrics.reloaded(!restart_needed.is_empty());
        if !restart_needed.is_empty() {
            warn!(
                fields = restart_needed.join(","),
                "restart needed: these changes wait for it, all others are in force"
            );
        }
        let files = self.sources.count();
        let (routes, keys) = (rules.routes.len(), rules.keys.len());
        self.warn(&warnings);
        let lost = if is_new {
            self.swap(rules).await
        } else {
            self.outgoing.push(rules);
            0
        };
        let at = UnixTime::now();
        let files_now = self.sources.paths().map(Path::to_owned).collect();
        self.change_status(|status| {
            status.add(Attempt { at, problems: 0, routes, keys, tunnels_ended: lost, changed: is_new });
            *status = Status { ok: true, at, error: None, restart_needed, files: files_now, ..status.clone() };
        });
        info!(files, routes, keys, tunnels_ended = lost, changed = is_new, "reloaded");
        self.notify.say(&self.serving());
        self.let_go().await;
    }

    fn refuse(&mut self, faulty: Faulty) {
        if let Some(sources) = faulty.sources {
            self.watcher.follow(sources.directories());
            self.sources = sources;
        }
        self.proxy.metrics.reload_failed();
        // The rules stay as they were.
        log::reload_failed(faulty.count, &faulty.text);
        let rules = self.proxy.rules.load();
        let (at, routes, keys) = (UnixTime::now(), rules.routes.len(), rules.keys.len());
        self.change_status(|status| {
            status.add(Attempt { at, problems: faulty.count, routes, keys, tunnels_ended: 0, changed: false });
            status.ok = false;
            status.error = Some(faulty.text);
        });
        self.notify.say("STATUS=the configuration has a fault, what was in force stays in force; the log says where");
    }

    /// The listener stays where it is until a restart, and with it the token: a file that moves it to where none is needed
    /// must not open it where it still is.
    fn with_token(&self, mut rules: Arc<Rules>, settings: &Settings) -> Arc<Rules> {
        if settings.admin != self.settings.admin
            && let Some(rules) = Arc::get_mut(&mut rules)
        {
            rules.admin_token = self.proxy.rules.load().admin_token;
        }
        rules
    }

    /// What is in force, as `systemctl status` shows it.
    fn serving(&self) -> String {
        let rules = self.proxy.rules.load();
        format!("STATUS=routes: {}, keys: {}", rules.routes.len(), rules.keys.len())
    }

    /// One atomic swap, then every live tunnel is asked about. Says how many have lost their right.
    async fn swap(&mut self, rules: Arc<Rules>) -> usize {
        let (on_revoked, on_route_removed) = (rules.on_revoked, rules.on_route_removed);
        let proxy = self.proxy.clone();
        let work = move || put_in_force(&proxy, rules);
        let swapped = self.loader.run(work).await;
        let swapped = swapped.expect("nothing in a swap panics; half of one would be no rules");
        self.outgoing.push(swapped.old);
        end_after(&self.proxy, swapped.revoked, on_revoked);
        end_after(&self.proxy, swapped.routed, on_route_removed);
        swapped.count
    }

    /// Old rules go when the last handshake that began under them has ended, and not on its thread: that may take a while.
    async fn let_go(&mut self) {
        let is_free = |rules: &mut Arc<Rules>| Arc::strong_count(rules) == 1;
        let free: Vec<_> = self.outgoing.extract_if(.., is_free).collect();
        if !free.is_empty() {
            self.loader.run(move || drop(free)).await;
        }
    }

    fn current_status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change_status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a swap has left to do.
pub(crate) struct Swapped {
    /// Tunnels that have lost their right.
    count: usize,
    old: Arc<Rules>,
    /// Those of them that are not ended yet, because they get a delay.
    revoked: Vec<(Arc<Live>, Cause)>,
    routed: Vec<(Arc<Live>, Cause)>,
}

/// New rules in the place of the old ones, and then, in this order, a question about each tunnel: who is seated after it
/// asks itself, by the new rules.
pub(crate) fn put_in_force(proxy: &Proxy, rules: Arc<Rules>) -> Swapped {
    let (on_revoked, on_route_removed) = (rules.on_revoked, rules.on_route_removed);
    proxy.counts.set_limits(&rules.limits);
    let old = proxy.rules.swap(rules);
    let lost = proxy.tunnels.reconcile(|live| proxy.admits(live));
    let count = lost.len();
    let (mut routed, mut revoked): (Vec<_>, Vec<_>) =
        lost.into_iter().partition(|(_, cause)| *cause == Cause::RouteRemoved);
    for (lost, delay) in [(&mut revoked, on_revoked), (&mut routed, on_route_removed)] {
        if delay.is_zero() {
            lost.drain(..).for_each(|(live, cause)| live.control.stop(cause));
        }
    }
    proxy.counts.forget_keys(proxy.rules.load().keys.ids());
    Swapped { count, old, revoked, routed }
}

/// Ends tunnels that have lost their right, after a delay, if they have not got it back.
fn end_after(proxy: &Arc<Proxy>, lost: Vec<(Arc<Live>, Cause)>, delay: Duration) {
    if lost.is_empty() {
        return;
    }
    let proxy = proxy.clone();
    #[expect(clippy::disallowed_methods, reason = "holds nothing that a drain would have to wait for")]
    tokio::spawn(async move {
        sleep(delay).await;
        for (live, _) in lost {
            if let Err(cause) = proxy.admits(&live) {
                live.control.stop(cause);
            }
        }
    });
}

/// A [`Config`] on its way.
struct Loaded {
    settings: Settings,
    rules: Arc<Rules>,
    sources: Arc<Sources>,
    warnings: Problems,
}

impl From<Config> for Loaded {
    fn from(config: Config) -> Self {
        let Config { settings, rules, sources, warnings } = config;
        Self { settings, rules: Arc::new(rules), sources: Arc::new(sources), warnings }
    }
}

/// What is wrong with files that were not taken over.
struct Faulty {
    count: usize,
    text: String,
    /// What was read: a change of these may mend it.
    sources: Option<Arc<Sources>>,
}

impl From<Problems> for Faulty {
    fn from(problems: Problems) -> Self {
        Self { count: problems.len(), text: problems.to_string(), sources: Some(Arc::new(problems.into_sources())) }
    }
}

fn differences(running: &Settings, wanted: &Settings) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if running.listen != wanted.listen {
        fields.push("listen");
    }
    if running.admin != wanted.admin {
        fields.push("admin");
    }
    fields
}
