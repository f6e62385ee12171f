//! Messages there and back in a closed loop: as fast as the slowest of proxy, server and client can.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{self, Target, fault};
use crate::drive::{self, Plan, Worker};
use crate::frame;

pub(crate) fn run(plan: &Plan, target: &Target, size: usize, inflight: usize) -> io::Result<()> {
    let details = json!({ "size": size, "inflight": inflight });
    drive::tasks(plan, details, |worker| connection(worker, target.clone(), size, inflight))
}

async fn connection(worker: Rc<Worker>, target: Target, size: usize, inflight: usize) -> io::Result<()> {
    let mut stream = worker.run.opened(open(&target).await)?;
    worker.run.begin().await;
    let payload = frame::payload(size);
    let sent = frame::frame(frame::BINARY, &payload, Some(frame::MASK));
    let wanted = frame::frame(frame::BINARY, &payload, None);
    let batch = sent.repeat(inflight);
    let mut buffer = vec![0; (wanted.len() * inflight + 64).max(512)];
    let mut have = 0;
    let mut under_way = VecDeque::with_capacity(inflight);
    let mut free = inflight;
    loop {
        if free > 0 {
            let now = Instant::now();
            under_way.extend(std::iter::repeat_n(now, free));
            stream.write_all(&batch[..sent.len() * free]).await?;
            free = 0;
        }
        match stream.read(&mut buffer[have..]).await? {
            0 => return Err(fault("the connection ended")),
            count => have += count,
        }
        let whole = have - have % wanted.len();
        for message in buffer[..whole].chunks(wanted.len()) {
            if *message != *wanted {
                return Err(fault("another message came back than was sent"));
            }
            let since = under_way.pop_front().ok_or_else(|| fault("more came back than was sent"))?;
            worker.count(since.elapsed());
            free += 1;
        }
        buffer.copy_within(whole..have, 0);
        have -= whole;
    }
}

async fn open(target: &Target) -> io::Result<TcpStream> {
    let opening = async {
        let mut stream = client::connect(target).await?;
        client::upgrade(&mut stream, &target.handshake(), &mut vec![0; 4096]).await?;
        Ok(stream)
    };
    timeout(Duration::from_secs(15), opening).await?
}
