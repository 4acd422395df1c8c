//! Writers that remember what was acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Records, connect};
use crate::chaos::chance::Chance;
use crate::cluster::Broken;

/// The writers of each region.
const WRITERS: u64 = 4;

/// What every mark begins with: rare enough that nothing else has it.
pub(super) const MARK: [u8; 4] = [0xC4, 0xA9, 0x7F, 0x1B];

/// The bytes of a mark.
pub(super) const MARK_BYTES: usize = 16;

/// A mark that is in no other key or value.
pub(super) type Mark = [u8; MARK_BYTES];

/// What was written and acknowledged.
#[derive(Debug, Default)]
pub(super) struct Load {
    numbers: AtomicU64,
    /// Per tag, key and value.
    acknowledged: Mutex<BTreeMap<&'static str, Written>>,
}

/// Values by their keys.
type Written = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writers at work.
pub(super) struct Working {
    stop: Arc<AtomicBool>,
    writers: JoinSet<()>,
}

impl Working {
    /// Lets each writer finish what it is at.
    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.writers.join_next().await.is_some() {}
    }
}

impl Load {
    /// Starts writers in each region.
    pub(super) async fn start(
        self: &Arc<Self>,
        regions: &[(&'static str, Vec<String>)],
    ) -> Result<Working> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for (region, endpoints) in regions {
            let client = connect(endpoints).await?;
            for writer in 0..WRITERS {
                let (load, stop, client) = (self.clone(), stop.clone(), client.clone());
                // Callers in us may not write to eu-only.
                let tag = match (*region, writer % 2) {
                    ("eu", 0) => "eu-only",
                    _ => "global",
                };
                writers.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        load.write(&client, tag).await;
                    }
                });
            }
        }
        Ok(Working { stop, writers })
    }

    async fn write(&self, client: &domicile_client::Client, tag: &'static str) {
        let (key, value) = (self.mark().to_vec(), self.mark().to_vec());
        let Ok(handle) = client.tag(tag) else { return };
        // What was not acknowledged may be there or not.
        if handle.put(key.clone(), value.clone()).await.is_ok() {
            let mut acknowledged = self.acknowledged.lock();
            acknowledged.entry(tag).or_default().insert(key, value);
        }
    }

    /// A new mark: the fixed bytes, then a number mixed so that its bytes do
    /// not repeat and no table compresses them.
    fn mark(&self) -> Mark {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut mark = [0; MARK_BYTES];
        mark[..4].copy_from_slice(&MARK);
        let mixed = |salt: u64| Chance::new(number ^ salt).next();
        let salt = u64::from(std::process::id());
        mark[4..12].copy_from_slice(&mixed(salt << 32).to_be_bytes());
        mark[12..].copy_from_slice(&(mixed(!salt) as u32).to_be_bytes());
        mark
    }

    /// Checks that everything acknowledged is there. Answers how much that is.
    pub(super) fn check(&self, global: &Records, eu_only: &Records) -> Result<usize> {
        let acknowledged = self.acknowledged.lock();
        let mut count = 0;
        for (tag, records) in acknowledged.iter() {
            let there = match *tag {
                "global" => global,
                _ => eu_only,
            };
            let lost = records
                .iter()
                .filter(|(key, value)| there.get(*key).map(|(v, _)| v) != Some(value));
            let lost = lost.count();
            if lost > 0 {
                let all = records.len();
                return Err(Broken::new(format!(
                    "{lost} of {all} acknowledged writes to {tag} are lost"
                )));
            }
            count += records.len();
        }
        Ok(count)
    }

    /// The marks in keys and values of the tag that stays at home.
    pub(super) fn marks(&self) -> Vec<Mark> {
        let acknowledged = self.acknowledged.lock();
        let kept = acknowledged.get("eu-only").into_iter().flatten();
        let marks = kept.flat_map(|(key, value)| [key, value]);
        marks
            .filter_map(|mark| mark.as_slice().try_into().ok())
            .collect()
    }
}
