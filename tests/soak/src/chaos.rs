//! What goes on all the while: reloads, revocations, routes that come and go, services that die, drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::clock;
use crate::drain::drain;
use crate::proxy::{Proxy, Rules, save};
use crate::stream::Rng;
use crate::upstream::restart;
use crate::world::{Guest, Key, World, lock};

/// How long a change of the file may take to be in force.
const PATIENCE: u64 = 60_000;

pub(crate) struct Chaos {
    pub(crate) world: Arc<World>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) upstreams: Vec<SocketAddr>,
    pub(crate) rng: Rng,
    pub(crate) disabled: Vec<Arc<Key>>,
    pub(crate) has_guest: bool,
    pub(crate) keys_made: u64,
    pub(crate) saved: u64,
    /// When the proxy is told to stop, in milliseconds from the beginning, the last one first.
    pub(crate) drains: Vec<u64>,
}

pub(crate) fn new_key(number: u64) -> Arc<Key> {
    Arc::new(Key {
        name: format!("key{number}"),
        in_force: Default::default(),
        revoked: Default::default(),
        narrowed: Default::default(),
    })
}

impl Chaos {
    pub(crate) async fn run(mut self) {
        let mut finish = self.world.finish.subscribe();
        let begin = clock::now();
        loop {
            tokio::select! {
                () = clock::sleep(self.rng.between(500, 3000)) => {}
                _ = finish.wait_for(|finish| *finish) => return,
            }
            if self.drains.pop_if(|at| clock::now() >= begin + *at).is_some() {
                self.drain().await;
            }
            match self.rng.below(100) {
                0..15 => self.reload("reload with the same rules").await,
                15..40 => self.revoke(false).await,
                40..55 => self.revoke(true).await,
                55..65 => self.narrow().await,
                65..75 => self.guest().await,
                75..82 => self.broken().await,
                _ => self.restart().await,
            }
        }
    }

    fn key(&mut self) -> Arc<Key> {
        let keys = lock(&self.world.keys);
        keys[self.rng.below(keys.len() as u64) as usize].clone()
    }

    /// A key is removed or turned off, and another takes its place.
    async fn revoke(&mut self, disable: bool) {
        let key = self.key();
        self.keys_made += 1;
        for place in lock(&self.world.keys).iter_mut().filter(|place| place.name == key.name) {
            *place = new_key(self.keys_made);
        }
        key.revoked.begun.comes();
        if disable {
            self.disabled.push(key.clone());
            let extra = self.disabled.len().saturating_sub(5);
            self.disabled.drain(..extra);
        }
        self.reload(if disable { "key turned off" } else { "key removed" }).await;
        key.revoked.done.comes();
    }

    async fn narrow(&mut self) {
        let key = self.key();
        key.narrowed.begun.comes();
        self.reload("key no longer allowed on its routes").await;
        key.narrowed.done.comes();
    }

    async fn guest(&mut self) {
        self.has_guest = !self.has_guest;
        if self.has_guest {
            *lock(&self.world.guest) = Arc::new(Guest::default());
        } else {
            lock(&self.world.guest).removed.begun.comes();
        }
        self.reload(if self.has_guest { "routes added" } else { "routes removed" }).await;
        if !self.has_guest {
            lock(&self.world.guest).removed.done.comes();
            // Until those that were on it are gone.
            clock::sleep(3000).await;
        }
    }

    /// A file with a fault changes nothing.
    async fn broken(&mut self) {
        let before = self.proxy.heard.failed_reloads.load(SeqCst);
        let text = format!("{}\nnonsense: [", self.text());
        self.save(&text);
        let heard = self.proxy.heard.clone();
        self.until(move || heard.failed_reloads.load(SeqCst) > before, "a broken file is reported").await;
        self.world.happened("broken file");
        self.reload("file mended").await;
    }

    async fn restart(&mut self) {
        let index = self.rng.below(self.upstreams.len() as u64) as usize;
        self.world.happened("upstream killed and started again");
        let down = self.rng.between(50, 1500);
        if let Err(error) = restart(&self.world, index, down).await {
            self.world.fault(format!("upstream {index}: {error}"));
        }
    }

    /// The proxy is told to stop, and another one takes its place.
    async fn drain(&mut self) {
        drain(&self.world, &self.proxy).await;
        clock::sleep(self.rng.between(0, 500)).await;
        match self.proxy.start_again().await {
            Ok(()) => drop(self.world.life.send_replace(Arc::default())),
            Err(error) => self.world.fault(format!("the proxy does not start again: {error}")),
        }
        self.world.happened("drained and started again");
    }

    fn text(&mut self) -> String {
        self.saved += 1;
        let keys = lock(&self.world.keys).clone();
        Rules {
            listen: self.proxy.address,
            upstreams: &self.upstreams,
            keys: &keys,
            disabled: &self.disabled,
            has_guest: self.has_guest,
            remark: self.saved,
        }
        .text()
    }

    fn save(&self, text: &str) {
        if let Err(error) = save(&self.proxy.directory(), text) {
            self.world.fault(format!("the file cannot be saved: {error}"));
        }
    }

    async fn reload(&mut self, what: &'static str) {
        let before = self.proxy.heard.reloads.load(SeqCst);
        let text = self.text();
        self.save(&text);
        let heard = self.proxy.heard.clone();
        self.until(move || heard.reloads.load(SeqCst) > before, what).await;
        lock(&self.world.keys).iter().for_each(|key| key.in_force.comes());
        self.world.happened(what);
    }

    async fn until(&self, condition: impl Fn() -> bool, what: &str) {
        let waiting = async {
            while !condition() {
                clock::sleep(20).await;
            }
        };
        if clock::within(PATIENCE, waiting).await.is_none() {
            self.world.fault(format!("not within a minute: {what}"));
        }
    }
}
