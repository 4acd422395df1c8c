//! The records of the tags this region serves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::limits::{KEY_BYTES_MAX, SCAN_PAGE_DEFAULT, SCAN_PAGE_MAX, VALUE_BYTES_MAX};
use domicile_proto::token::{Position, Positions, Secret, Token};
use domicile_proto::v1;
use domicile_proto::version::{Epoch, Index as LogIndex, RangeId};
use wire::operation::{Change, Condition};

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::directory::{Directory, Route};
use crate::kv::forward;
use crate::kv::freshness::Freshness;
use crate::kv::read::{self, ScanQuery};
use crate::net::{Peers, Speaker};
use crate::raft::{Answer, Group, Outcome, Progress, Reply, Write};
use crate::storage::{Disk, Index};

/// How often a read that waits for its level looks again.
const WAIT_STEP: Duration = Duration::from_millis(20);

/// How long a read waits for its level at most; the caller's deadline may be
/// sooner.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The epoch of every home until homes can move.
const FIRST_EPOCH: Epoch = Epoch(1);

/// How a read is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    level: Level,
    on_unmet: OnUnmet,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Level {
    #[default]
    Strong,
    Local,
    Bounded(Duration),
    AtLeast(Bytes),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OnUnmet {
    #[default]
    Forward,
    Wait,
    Fail,
}

impl ReadOptions {
    /// Reads the options of a request.
    pub fn from_wire(options: Option<&v1::ReadOptions>) -> Result<Self> {
        let Some(options) = options else {
            return Ok(ReadOptions::default());
        };
        let level = match v1::Level::try_from(options.level) {
            Ok(v1::Level::Unspecified | v1::Level::Strong) => Level::Strong,
            Ok(v1::Level::Local) => Level::Local,
            Ok(v1::Level::Bounded) => Level::Bounded(Duration::from_millis(options.bound_ms)),
            Ok(v1::Level::AtLeast) => Level::AtLeast(options.token.clone()),
            Err(_) => return Err(Error::invalid("the read level is not known")),
        };
        let on_unmet = match v1::OnUnmet::try_from(options.on_unmet) {
            Ok(v1::OnUnmet::Unspecified | v1::OnUnmet::Forward) => OnUnmet::Forward,
            Ok(v1::OnUnmet::Wait) => OnUnmet::Wait,
            Ok(v1::OnUnmet::Fail) => OnUnmet::Fail,
            Err(_) => return Err(Error::invalid("the choice for an unmet level is not known")),
        };
        Ok(ReadOptions { level, on_unmet })
    }

    /// Whether the read needs nothing but this node.
    pub fn is_local(&self) -> bool {
        self.level == Level::Local
    }
}

/// The records of the tags this region serves.
pub struct Store {
    env: Env,
    directory: Arc<Directory>,
    freshness: Arc<Freshness>,
    peers: Arc<Peers>,
    speaker: Speaker,
    disk: Arc<Disk>,
}

impl Store {
    /// Serves what the directory says.
    pub fn new(
        env: Env,
        directory: Arc<Directory>,
        freshness: Arc<Freshness>,
        peers: Arc<Peers>,
        speaker: Speaker,
        disk: Arc<Disk>,
    ) -> Self {
        Store {
            env,
            directory,
            freshness,
            peers,
            speaker,
            disk,
        }
    }

    /// Admits a request for a tag, from the tag alone.
    pub fn admit(&self, tag: &str) -> Result<Route> {
        self.directory.route(tag)
    }

    /// Writes. Each write is answered through its own reply.
    pub fn write(&self, route: &Route, writes: Vec<Write>) {
        if let Err(error) = self.disk.admit_write() {
            for write in writes {
                write.reply.send(Err(error.again()));
            }
            return;
        }
        match route {
            Route::Here(group) if group.leads() => group.propose(writes),
            Route::Here(group) => match group.leader() {
                Some(leader) if leader.replica != group.replica() => forward::writes(
                    &self.env,
                    &self.peers,
                    leader.node,
                    leader.replica,
                    group.identity().group,
                    writes,
                ),
                // Its own proposer says why it cannot.
                _ => group.propose(writes),
            },
            Route::There(..) => {
                for write in writes {
                    write.reply.send(Err(elsewhere()));
                }
            }
        }
    }

    /// Reads keys at a level. The answers come in the order of the keys.
    pub async fn get(
        &self,
        route: &Route,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<(Vec<Option<v1::Record>>, v1::ReadMeta)> {
        let Route::Here(group) = route else {
            return Err(elsewhere());
        };
        keys.iter().try_for_each(check_key)?;
        let (level, lag, progress) = self.reach(group, options).await?;
        let tag = &group.identity().tag;
        let records = keys
            .iter()
            .map(|key| read::get(self.disk.state.as_ref(), tag, key))
            .collect::<Result<_>>()?;
        Ok((records, self.meta(group, level, lag, progress)))
    }

    /// Reads keys as this node has them, at once.
    pub fn get_local(
        &self,
        route: &Route,
        keys: impl Iterator<Item = Bytes>,
        mut answer: impl FnMut(Result<Option<v1::Record>>),
    ) -> Result<v1::ReadMeta> {
        let Route::Here(group) = route else {
            return Err(elsewhere());
        };
        let tag = &group.identity().tag;
        // Taken before the reads, so that it never understates.
        let lag = self.freshness.lag(group);
        let progress = group.progress();
        for key in keys {
            answer(check_key(&key).and_then(|()| read::get(self.disk.state.as_ref(), tag, &key)));
        }
        Ok(self.meta(group, v1::Level::Local, lag, progress))
    }

    /// Reads one page of a scan.
    pub async fn scan(&self, route: &Route, request: v1::ScanRequest) -> Result<v1::ScanResponse> {
        let Route::Here(group) = route else {
            return Err(elsewhere());
        };
        let options = ReadOptions::from_wire(request.options.as_ref())?;
        let page_size = request.page_size as usize;
        if page_size > SCAN_PAGE_MAX {
            return Err(Error::invalid(format!(
                "a page holds at most {SCAN_PAGE_MAX} records; ask for fewer"
            )));
        }
        for bound in [&request.start, &request.end] {
            if bound.len() > KEY_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "a key has at most {KEY_BYTES_MAX} bytes"
                )));
            }
        }
        let (level, lag, progress) = self.reach(group, &options).await?;
        let (version, start) = if request.page_token.is_empty() {
            (progress.last_version, request.start)
        } else {
            let position = read::page_position(&request.page_token)?;
            if progress.last_version < position.version {
                return Err(Error::new(
                    Reason::StalenessNotMet,
                    "this copy is behind the first page of the scan; go on at another node",
                )
                .retry_after(WAIT_STEP));
            }
            (position.version, position.start)
        };
        let query = ScanQuery {
            start,
            end: request.end,
            records_max: match page_size {
                0 => SCAN_PAGE_DEFAULT,
                size => size,
            },
            version,
        };
        let page = read::scan(self.disk.state.as_ref(), &group.identity().tag, &query)?;
        Ok(v1::ScanResponse {
            records: page.records,
            next_page_token: page
                .next
                .map(|next| read::page_token(version, next))
                .unwrap_or_default(),
            meta: Some(self.meta(group, level, lag, progress)),
        })
    }

    /// A read position that covers a log entry of a group.
    pub fn token(&self, group: &Group, index: Index) -> Bytes {
        let Some(secret) = self.secret() else {
            return Bytes::new();
        };
        let mut positions = Positions::default();
        let range = RangeId(group.identity().group.0);
        let position = Position {
            epoch: FIRST_EPOCH,
            index: LogIndex(index.0),
        };
        match positions.see(range, position) {
            Ok(()) => positions.seal(&secret).encode(),
            Err(_) => Bytes::new(),
        }
    }

    fn secret(&self) -> Option<Secret> {
        let key = self.directory.token_key()?;
        let key: &[u8; 32] = key.as_ref().try_into().ok()?;
        Some(Secret::new(key))
    }

    /// Waits until the group's copy here meets the level asked for.
    async fn reach(
        &self,
        group: &Group,
        options: &ReadOptions,
    ) -> Result<(v1::Level, Option<Duration>, Progress)> {
        match &options.level {
            Level::Strong => self.strong(group).await,
            Level::Local => Ok((
                v1::Level::Local,
                self.freshness.lag(group),
                group.progress(),
            )),
            Level::Bounded(bound) => {
                let fresh = || {
                    let lag = self.freshness.lag(group)?;
                    (lag <= *bound).then_some(lag)
                };
                let met = || async {
                    while fresh().is_none() {
                        tokio::time::sleep(WAIT_STEP).await;
                    }
                };
                self.unless(group, options, fresh().is_some(), met())
                    .await?
                    .map_or_else(
                        || {
                            Ok((
                                v1::Level::Bounded,
                                self.freshness.lag(group),
                                group.progress(),
                            ))
                        },
                        Ok,
                    )
            }
            Level::AtLeast(token) => {
                let wanted = self.position(group, token)?;
                let met = async {
                    // A failed wait is met by the deadline of the caller.
                    drop(group.wait_applied(wanted, WAIT_MAX).await);
                };
                let now = group.progress().index >= wanted;
                self.unless(group, options, now, met).await?.map_or_else(
                    || {
                        Ok((
                            v1::Level::AtLeast,
                            self.freshness.lag(group),
                            group.progress(),
                        ))
                    },
                    Ok,
                )
            }
        }
    }

    async fn strong(&self, group: &Group) -> Result<(v1::Level, Option<Duration>, Progress)> {
        let asked = self.env.now();
        let progress = group.read_barrier().await?;
        let lag = self.env.now().saturating_duration_since(asked);
        Ok((v1::Level::Strong, Some(lag), progress))
    }

    /// Does what the request wants when its level is not met now: answers the
    /// strong read it is forwarded to, or `None` once the level is met.
    async fn unless(
        &self,
        group: &Group,
        options: &ReadOptions,
        met: bool,
        wait: impl Future<Output = ()>,
    ) -> Result<Option<(v1::Level, Option<Duration>, Progress)>> {
        if met {
            return Ok(None);
        }
        let not_met = || {
            Error::new(
                Reason::StalenessNotMet,
                "the copy here is not as fresh as asked for; try later or read strongly",
            )
            .retry_after(WAIT_STEP)
        };
        match options.on_unmet {
            OnUnmet::Forward => self.strong(group).await.map(Some),
            OnUnmet::Fail => Err(not_met()),
            OnUnmet::Wait => match tokio::time::timeout(WAIT_MAX, wait).await {
                Ok(()) => Ok(None),
                Err(_) => Err(not_met()),
            },
        }
    }

    /// The index that a token asks of a group.
    fn position(&self, group: &Group, token: &[u8]) -> Result<Index> {
        let invalid = || Error::invalid("the read position is not one that this cluster gave");
        let token = Token::decode(token).map_err(|_| invalid())?;
        let secret = self.secret().ok_or_else(invalid)?;
        let positions = token.verify(&[&secret]).map_err(|_| invalid())?;
        let range = RangeId(group.identity().group.0);
        Ok(Index(positions.get(range).map_or(0, |p| p.index.get())))
    }

    fn meta(
        &self,
        group: &Group,
        level: v1::Level,
        lag: Option<Duration>,
        progress: Progress,
    ) -> v1::ReadMeta {
        v1::ReadMeta {
            level: level.into(),
            served_by: self.speaker.name(),
            as_of: progress.last_version,
            // Rounded up: it may overstate, never understate.
            lag_ms: lag.map(|lag| lag.as_micros().div_ceil(1000) as u64),
            token: self.token(group, progress.index),
        }
    }
}

fn elsewhere() -> Error {
    Error::new(
        Reason::WrongHome,
        "no replica of the tag's group is on this node; ask another node of the region",
    )
}

fn check_key(key: &Bytes) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a key has 1 to {KEY_BYTES_MAX} bytes; this one has {}",
            key.len()
        )));
    }
    Ok(())
}

fn check_id(id: Option<v1::RequestId>) -> Result<Option<wire::WriteId>> {
    let Some(id) = id else { return Ok(None) };
    if id.client.len() != 16 || id.sequence == 0 {
        return Err(Error::invalid(
            "a request id has a client id of 16 bytes and a sequence from 1",
        ));
    }
    Ok(Some(wire::WriteId {
        client: id.client,
        sequence: id.sequence,
        acked_below: id.acked_below,
    }))
}

fn check_condition(condition: Option<v1::Condition>) -> Result<Option<Condition>> {
    use v1::condition::Condition as Wire;
    match condition.and_then(|c| c.condition) {
        None => Ok(None),
        Some(Wire::IfAbsent(true)) => Ok(Some(Condition::IfAbsent(true))),
        Some(Wire::IfAbsent(false)) => Err(Error::invalid(
            "`if_absent` is true or left away; to require a record, name its version",
        )),
        Some(Wire::IfVersion(version)) => Ok(Some(Condition::IfVersion(version))),
    }
}

/// Checks a put and makes a write of it.
pub(super) fn put(request: v1::PutRequest, reply: Reply) -> Result<Write, (Error, Reply)> {
    let checked = (|| {
        check_key(&request.key)?;
        if request.value.len() > VALUE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a value has at most {VALUE_BYTES_MAX} bytes; this one has {}",
                request.value.len()
            )));
        }
        Ok((
            check_id(request.request_id)?,
            check_condition(request.condition)?,
        ))
    })();
    match checked {
        Err(error) => Err((error, reply)),
        Ok((id, condition)) => Ok(Write {
            id,
            key: request.key,
            change: Change::Put(wire::Value {
                data_key: 0,
                commitment: Bytes::new(),
                bytes: request.value,
            }),
            condition,
            reply,
        }),
    }
}

/// Checks a delete and makes a write of it.
pub(super) fn delete(request: v1::DeleteRequest, reply: Reply) -> Result<Write, (Error, Reply)> {
    let checked = (|| {
        check_key(&request.key)?;
        Ok((
            check_id(request.request_id)?,
            check_condition(request.condition)?,
        ))
    })();
    match checked {
        Err(error) => Err((error, reply)),
        Ok((id, condition)) => Ok(Write {
            id,
            key: request.key,
            change: Change::Delete(wire::Tombstone {}),
            condition,
            reply,
        }),
    }
}

/// What a client is told of a write.
pub enum Written {
    /// A put.
    Put(v1::PutResponse),
    /// A delete.
    Delete(v1::DeleteResponse),
}

/// A client's write, before it is checked.
pub enum WriteRequest {
    /// A put.
    Put(v1::PutRequest),
    /// A delete.
    Delete(v1::DeleteRequest),
}

/// Checks a client's write; `done` gets what came of it and the log entry.
/// A malformed one is answered at once.
pub fn reply_to(
    request: WriteRequest,
    done: impl FnOnce(Result<(Written, Index)>) + Send + 'static,
) -> Option<Write> {
    let deletes = matches!(request, WriteRequest::Delete(_));
    let reply = Reply::new(move |answer: Result<Answer>| {
        done(answer.and_then(|answer| {
            let Outcome::Written { version, before } = answer.outcome else {
                return Err(Error::internal("a write was answered without a version"));
            };
            let written = if deletes {
                Written::Delete(v1::DeleteResponse {
                    version,
                    existed: before.is_some(),
                    token: Bytes::new(),
                })
            } else {
                Written::Put(v1::PutResponse {
                    version,
                    token: Bytes::new(),
                })
            };
            Ok((written, answer.index))
        }));
    });
    let checked = match request {
        WriteRequest::Put(request) => put(request, reply),
        WriteRequest::Delete(request) => delete(request, reply),
    };
    match checked {
        Ok(write) => Some(write),
        Err((error, reply)) => {
            reply.send(Err(error));
            None
        }
    }
}
