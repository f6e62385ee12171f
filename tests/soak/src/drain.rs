//! What the proxy does when it is told to stop with everything open.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::clock;
use crate::proxy::Proxy;
use crate::world::{Life, World, lock};

/// For the ends of the last tunnels, and for the log.
const PATIENCE: u64 = 120_000;

/// SIGTERM: the process ends by itself and with 0, the log says that nothing was left, and so do all tunnels. Each of
/// their ends is judged by its client like any other: what it has received is what was sent, up to a Close with 1012.
pub(crate) async fn drain(world: &World, proxy: &Proxy) {
    let life = world.life.borrow().clone();
    let by_drain = || lock(&world.total.ends).get("drain").copied().unwrap_or_default();
    let all = || lock(&world.total.ends).values().sum::<u64>();
    let without_word = || world.total.no_word.load(SeqCst);
    let (open, before) = (world.total.now.load(SeqCst), (by_drain(), all(), without_word()));
    let drains = world.total.drains.fetch_add(1, SeqCst) + 1;
    life.told_to_stop.comes();
    let began = clock::now();
    match proxy.stop().await {
        Some(status) if status.success() => {}
        other => world.fault(format!("told to stop, the proxy ends with {other:?}")),
    }
    let took = clock::now() - began;
    let over = async {
        while proxy.heard.drained.load(SeqCst) < drains || has_tunnels(world, &life) {
            clock::sleep(20).await;
        }
    };
    if clock::within(PATIENCE, over).await.is_none() {
        world.fault(format!("drain {drains}: tunnels are left, or the log does not say that none are"));
    }
    let (ended, ends, silent) = (by_drain() - before.0, all() - before.1, without_word() - before.2);
    println!(
        "  drain: {open} open, {ended} ended by it, {} as planned or otherwise, {silent} of all with no room for a \
         Close, {took} ms",
        ends - ended
    );
    if open > 0 && ended == 0 {
        world.fault(format!("drain {drains} has ended none of {open} tunnels"));
    }
}

fn has_tunnels(world: &World, life: &Arc<Life>) -> bool {
    lock(&world.tunnels).values().any(|tunnel| Arc::ptr_eq(&tunnel.life, life))
}
