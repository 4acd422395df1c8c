//! Reading records.
//!
//! A read says how fresh it must be ([`options`]). It is served here if this copy is
//! fresh enough ([`reach`]), and says at most how old it is; or else it is passed on to
//! the home ([`remote`]). Pages of scans ([`scan`]) wait for a permit.
//!
//! Not done here: reading rows (`state::read`), how fresh a copy is
//! (`freshness`).

mod options;
pub(super) mod reach;
mod remote;
mod scan;

use bytes::Bytes;
use domicile_proto::v1;

pub use self::options::ReadOptions;
use self::reach::{Reached, Served, is_whole, replaced};
use crate::error::Result;
use crate::kv::directory::{LocalCopy, Route};
use crate::kv::store::Store;
use crate::kv::tokens;
use crate::kv::write::check_key;
use crate::raft::Progress;
use crate::state::read::{self, GET_BYTES_MAX};
use crate::storage::Index;

/// How often rows are read that are replaced meanwhile, which is rare.
const READS_MAX: usize = 3;

impl Store {
    /// Reads the first keys at a level, as many as one answer takes: at least
    /// one. The answers come in the order of the keys; for the others the
    /// caller asks again.
    pub async fn get(
        &self,
        route: &Route,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<(Vec<Option<v1::Record>>, v1::ReadMeta)> {
        match self.get_here(route, keys, options).await? {
            Some(read) => Ok(read),
            None => self.get_at_home(route, keys, options.token()).await,
        }
    }

    /// The same from what this node has; `None`: it is for the home to answer.
    async fn get_here(
        &self,
        route: &Route,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<Option<(Vec<Option<v1::Record>>, v1::ReadMeta)>> {
        keys.iter().try_for_each(check_key)?;
        for _ in 0..READS_MAX {
            let reached = match self.reach(route, options).await? {
                Served::Here(reached) => reached,
                Served::AtHome => return Ok(None),
            };
            let records = self.records(route, keys, reached.progress.changed_version);
            let records = records.await;
            if self.counts(route, &reached)? {
                return Ok(Some((records?, self.meta(route, &reached))));
            }
        }
        Err(replaced(route))
    }

    /// Whether what was read may be answered: the rows are still those that were
    /// reached, and may still be read; both may have ended while it waited.
    fn counts(&self, route: &Route, reached: &Reached) -> Result<bool> {
        self.admits_still(route)?;
        Ok(is_whole(route, reached) && self.readable(route).is_ok())
    }

    /// Reads the first keys, as many as one answer takes. What is not in memory is
    /// read away from the threads that agree on writes.
    async fn records(
        &self,
        route: &Route,
        keys: &[Bytes],
        version: u64,
    ) -> Result<Vec<Option<v1::Record>>> {
        let mut records = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let Some(record) = self.read_at_once(route, key, version)? else {
                break;
            };
            bytes += read::size(record.as_ref());
            records.push(record);
            if bytes >= GET_BYTES_MAX {
                break;
            }
        }
        if !records.is_empty() || keys.is_empty() {
            return Ok(records);
        }
        let (tag, keys) = (route.tag.clone(), keys.to_vec());
        let permit = self.disk_reads.clone().acquire_owned().await;
        let records = self.disk.blocking(move |disk| {
            let _permit = permit;
            let records = read::get_first(disk.state.as_ref(), tag.as_str(), &keys, version);
            disk.report(records)
        });
        records.await
    }

    /// Reads the first keys as this node has them, at once, as many as one
    /// answer takes: at least one. `None`: this node cannot answer alone, and
    /// what was answered does not count.
    pub fn get_local(
        &self,
        route: &Route,
        keys: impl Iterator<Item = Bytes>,
        mut answer: impl FnMut(Result<Option<v1::Record>>),
    ) -> Option<v1::ReadMeta> {
        // Taken before the reads, so that it never understates.
        let reached = self.local(route).ok()?;
        let version = reached.progress.changed_version;
        let mut bytes = 0;
        for key in keys {
            let record = match check_key(&key) {
                Ok(()) => self.read_at_once(route, &key, version).transpose()?,
                Err(refused) => Err(refused),
            };
            bytes += read::size(record.as_ref().ok().and_then(Option::as_ref));
            answer(record);
            if bytes >= GET_BYTES_MAX {
                break;
            }
        }
        is_whole(route, &reached).then(|| self.meta(route, &reached))
    }

    /// Reads a key if it is in memory; `None`: it must be asked of the disk.
    fn read_at_once(
        &self,
        route: &Route,
        key: &Bytes,
        version: u64,
    ) -> Result<Option<Option<v1::Record>>> {
        let state = self.disk.state.as_ref();
        let record = read::get_at_once(state, route.tag.as_str(), key, version);
        self.disk.report(record)
    }

    fn meta(&self, route: &Route, reached: &Reached) -> v1::ReadMeta {
        v1::ReadMeta {
            level: reached.level.into(),
            served_by: self.speaker.name(),
            as_of: reached.progress.changed_version,
            // Rounded up: it may overstate, never understate.
            lag_ms: reached.lag.map(|lag| lag.as_micros().div_ceil(1000) as u64),
            token: tokens::covering(route, changed(route, &reached.progress)),
        }
    }
}

/// The entry of the home's log that made the last change a copy has. What it
/// applied behind changes nothing, and no mirror hears of it.
fn changed(route: &Route, progress: &Progress) -> Index {
    match &route.here {
        LocalCopy::Mirror { .. } => progress.mirror.unwrap_or_default().cursor.index,
        _ => progress.changed.index,
    }
}
