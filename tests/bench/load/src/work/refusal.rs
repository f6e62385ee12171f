//! Handshakes with a wrong key.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::client::{self, Target, fault};
use crate::drive::{self, Plan, Worker};

pub(crate) fn run(plan: &Plan, target: &Target, keepalive: bool) -> io::Result<()> {
    let details = json!({ "keepalive": keepalive });
    drive::tasks(plan, details, |worker| again_and_again(worker, target.clone(), keepalive))
}

async fn again_and_again(worker: Rc<Worker>, target: Target, keepalive: bool) -> io::Result<()> {
    let request = target.handshake();
    let mut buffer = vec![0; 8192];
    let mut kept = None;
    while !worker.run.is_over() {
        let begin = Instant::now();
        match once(&target, &request, kept.take(), &mut buffer).await {
            Ok(stream) => {
                worker.count(begin.elapsed());
                kept = stream.filter(|_| keepalive);
            }
            Err(error) => {
                worker.run.error(&error);
                sleep(Duration::from_millis(5)).await;
            }
        }
    }
    Ok(())
}

/// Gives the connection back if it can be used once more.
async fn once(
    target: &Target,
    request: &[u8],
    kept: Option<TcpStream>,
    buffer: &mut [u8],
) -> io::Result<Option<TcpStream>> {
    let mut stream = match kept {
        Some(stream) => stream,
        None => client::connect_from_anywhere(target).await?,
    };
    stream.write_all(request).await?;
    let answer = client::answer(&mut stream, buffer).await?;
    if !matches!(answer.status, 401 | 403) {
        return Err(fault(format!("status {}", answer.status)));
    }
    let Some(length) = answer.content_length.filter(|_| !answer.closes) else { return Ok(None) };
    let mut have = answer.read - answer.head;
    while have < length {
        match stream.read(buffer).await? {
            0 => return Ok(None),
            count => have += count,
        }
    }
    Ok(Some(stream))
}
