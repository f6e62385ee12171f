//! What became of spans: only in a build that makes some.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

use crate::spans::Spans;

#[derive(Debug)]
pub struct SpanNumbers(pub Arc<Spans>);

impl Collector for SpanNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = ConstCounter::new(0u64).metric_type();
        let text = "Spans by what became of them: taken by the collector, not taken, or never sent for want of room";
        let mut family = encoder.encode_descriptor("spans", text, None, kind)?;
        for (result, count) in self.0.numbers() {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}
