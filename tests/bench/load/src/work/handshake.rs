//! A tunnel's whole short life: connect, upgrade, Close there and back, end.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use crate::client::{self, Target, fault};
use crate::drive::{self, Plan, Worker};
use crate::frame;

pub(crate) fn run(plan: &Plan, target: &Target) -> io::Result<()> {
    let parts = (target.handshake(), frame::frame(frame::CLOSE, &1000u16.to_be_bytes(), Some(frame::MASK)));
    drive::tasks(plan, json!({}), |worker| again_and_again(worker, target.clone(), parts.clone()))
}

async fn again_and_again(worker: Rc<Worker>, target: Target, (request, close): (Vec<u8>, Vec<u8>)) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    while !worker.run.is_over() {
        match once(&target, &request, &close, &mut buffer).await {
            Ok(latency) => worker.count(latency),
            Err(error) => {
                worker.run.error(&error);
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
    Ok(())
}

/// Takes the time from the first packet to the 101.
async fn once(target: &Target, request: &[u8], close: &[u8], buffer: &mut [u8]) -> io::Result<Duration> {
    let begin = Instant::now();
    let mut stream = client::connect_from_anywhere(target).await?;
    let answer = client::upgrade(&mut stream, request, buffer).await?;
    let latency = begin.elapsed();
    if answer.head != answer.read {
        return Err(fault("unexpected bytes behind the 101"));
    }
    stream.write_all(close).await?;
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]).await? {
            0 => break,
            count => have += count,
        }
    }
    if have < 4 || buffer[0] != frame::CLOSE {
        return Err(fault("no Close frame came back"));
    }
    Ok(latency)
}
