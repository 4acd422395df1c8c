//! Whether the copy here meets the level that a read asks for, and what is done
//! when it does not.

use std::time::Duration;

use domicile_proto::v1;

use crate::env::Instant;
use crate::error::{Error, Reason, Result};
use crate::kv::directory::{LocalCopy, Route};
use crate::kv::failure::{WAIT_STEP, elsewhere};
use crate::kv::read::options::{Level, OnUnmet, ReadOptions};
use crate::kv::store::Store;
use crate::kv::tokens;
use crate::raft::{Generation, Group, Progress};
use crate::seeded::{self, Bug};
use crate::storage::Index;

/// How long a read waits for its level at most; the caller's deadline may be
/// sooner.
pub(in crate::kv) const WAIT_MAX: Duration = Duration::from_secs(10);

/// What a read is served from, and how old that may be.
pub(super) struct Reached {
    /// The level that is met.
    pub(super) level: v1::Level,
    /// How old it may be; `None`: unknown.
    pub(super) lag: Option<Duration>,
    /// How far the copy is.
    pub(super) progress: Progress,
    /// The rows it is of. What is read counts only while they are these.
    pub(super) generation: Generation,
}

/// Where a read is served.
#[expect(
    clippy::large_enum_variant,
    reason = "made once for each read and moved; a box would cost each an allocation"
)]
pub(super) enum Served {
    /// Here.
    Here(Reached),
    /// The level is not met here, and the reader wants the home's answer then.
    AtHome,
}

impl Store {
    /// Waits until the copy here meets the level asked for.
    pub(super) async fn reach(&self, route: &Route, options: &ReadOptions) -> Result<Served> {
        let group = match &route.here {
            LocalCopy::Home(group) | LocalCopy::Mirror { group, .. } => group,
            LocalCopy::Nothing if route.home == *self.gate.region() => return Err(elsewhere()),
            // No copy here meets a level; who wants no other answer hears so.
            LocalCopy::Nothing
                if options.on_unmet == OnUnmet::Fail && options.level.is_a_bound() =>
            {
                return Err(not_met());
            }
            LocalCopy::Nothing => return Ok(Served::AtHome),
        };
        if options.level == Level::Strong {
            return match &route.here {
                LocalCopy::Home(group) => self.strong(route, group).await.map(Served::Here),
                _ => Ok(Served::AtHome),
            };
        }
        let deadline = self.env.now() + WAIT_MAX;
        if let Err(closed) = self.readable(route) {
            match options.on_unmet {
                OnUnmet::Forward => return Ok(Served::AtHome),
                OnUnmet::Fail => return Err(closed),
                OnUnmet::Wait => self.until_readable(route, deadline).await?,
            }
        }
        let level = match &options.level {
            Level::Strong | Level::Local => return self.local(route).map(Served::Here),
            Level::Bounded(bound) => {
                // Measured once, and told so: a second look would be later.
                let fresh = || self.lag(route).filter(|lag| lag <= bound);
                let mut lag = fresh();
                let now = lag.is_some();
                let met = async {
                    while lag.is_none() {
                        tokio::time::sleep(WAIT_STEP).await;
                        lag = fresh();
                    }
                    true
                };
                if !self.unless(options, now, deadline, met).await? {
                    return self.at_home(route, group).await;
                }
                return Ok(Served::Here(Reached {
                    level: v1::Level::Bounded,
                    lag,
                    ..self.local(route)?
                }));
            }
            Level::AtLeast(token) => {
                let wanted = match &route.here {
                    LocalCopy::Home(group) => tokens::wanted_at_home(route, group, token).await?,
                    _ => match tokens::wanted(route, token)? {
                        Some(wanted) => wanted,
                        None if options.on_unmet == OnUnmet::Fail => return Err(tokens::behind()),
                        None => return Ok(Served::AtHome),
                    },
                };
                let wanted = match seeded::is_on(Bug::TokenIgnored) {
                    true => Index(0),
                    false => wanted,
                };
                let now = seen(route, &group.progress()) >= wanted;
                if !now
                    && options.on_unmet != OnUnmet::Fail
                    && let LocalCopy::Home(group) = &route.here
                    && let Ok(reached) = self.strong(route, group).await
                {
                    // What a quorum does not have no replica will get to.
                    tokens::not_lost(wanted, &reached.progress)?;
                    return Ok(Served::Here(reached));
                }
                let mut progress = group.watch_progress();
                // A replica that stops meanwhile does not get there.
                let met = async {
                    let reached = progress.wait_for(|p| seen(route, p) >= wanted);
                    reached.await.is_ok()
                };
                match self.unless(options, now, deadline, met).await? {
                    false => return self.at_home(route, group).await,
                    true => v1::Level::AtLeast,
                }
            }
        };
        Ok(Served::Here(Reached {
            level,
            ..self.local(route)?
        }))
    }

    /// The strong read that an unmet level is forwarded to.
    async fn at_home(&self, route: &Route, group: &Group) -> Result<Served> {
        match &route.here {
            LocalCopy::Home(_) => self.strong(route, group).await.map(Served::Here),
            _ => Ok(Served::AtHome),
        }
    }

    /// What a local read is served from.
    pub(super) fn local(&self, route: &Route) -> Result<Reached> {
        let generation = self.readable(route)?;
        let group = route.group().ok_or_else(elsewhere)?;
        // Lag before progress: it must not be counted from after the state.
        let lag = self.lag(route);
        Ok(Reached {
            level: v1::Level::Local,
            lag,
            progress: group.progress(),
            generation,
        })
    }

    /// Waits until the copy here may be read; answers why not at the deadline.
    async fn until_readable(&self, route: &Route, deadline: Instant) -> Result<()> {
        loop {
            match self.readable(route) {
                Ok(_) => return Ok(()),
                Err(closed) if self.env.now() >= deadline => return Err(closed),
                Err(_) => tokio::time::sleep(WAIT_STEP).await,
            }
        }
    }

    /// The rows here, if they may be read at all.
    pub(super) fn readable(&self, route: &Route) -> Result<Generation> {
        let group = route.group().ok_or_else(elsewhere)?;
        // First: what is found of the group below must be of these rows.
        let generation = group.generation().ok_or_else(|| replaced(route))?;
        let LocalCopy::Mirror {
            serves_isolated, ..
        } = &route.here
        else {
            // Of what was written before it joined it may have nothing yet.
            return match group.progress().joined {
                true => Ok(generation),
                false => Err(replaced(route)),
            };
        };
        let open = group.progress().mirror.unwrap_or_default().open;
        if !open && !seeded::is_on(Bug::FillingServes) {
            return Err(Error::new(
                Reason::Backfilling,
                "the mirror here does not have every record yet; read at the home, or later",
            )
            .fact("home", &route.home)
            .retry_after(WAIT_STEP));
        }
        if !serves_isolated && self.gate.policy().lease().left().is_zero() {
            return Err(Error::new(
                Reason::StalenessNotMet,
                "the policy lease has lapsed, and the tag's policy says that a mirror stops \
                 then; read at the home",
            )
            .fact("home", &route.home)
            .retry_after(WAIT_STEP));
        }
        Ok(generation)
    }

    fn lag(&self, route: &Route) -> Option<Duration> {
        self.freshness.lag(route.group()?)
    }

    async fn strong(&self, route: &Route, group: &Group) -> Result<Reached> {
        let asked = self.env.now();
        let progress = group.read_barrier().await?;
        // Rows that replace these later are newer.
        let generation = group.generation().ok_or_else(|| replaced(route))?;
        let lag = self.env.age(asked);
        Ok(Reached {
            level: v1::Level::Strong,
            lag,
            progress,
            generation,
        })
    }

    /// Does what the request wants when its level is not met now. `wait` ends
    /// once it is known whether it will be. Answers whether it is met; else the
    /// read is forwarded.
    async fn unless(
        &self,
        options: &ReadOptions,
        met: bool,
        deadline: Instant,
        wait: impl Future<Output = bool>,
    ) -> Result<bool> {
        match options.on_unmet {
            _ if met => Ok(true),
            OnUnmet::Forward => Ok(false),
            OnUnmet::Fail => Err(not_met()),
            OnUnmet::Wait => match tokio::time::timeout_at(deadline, wait).await {
                Ok(true) => Ok(true),
                Ok(false) | Err(_) => Err(not_met()),
            },
        }
    }
}

pub(super) fn not_met() -> Error {
    Error::new(
        Reason::StalenessNotMet,
        "no copy here is as fresh as asked for; try later or read strongly",
    )
    .retry_after(WAIT_STEP)
}

/// The entry of the home's log up to which a copy has everything.
fn seen(route: &Route, progress: &Progress) -> Index {
    match &route.here {
        LocalCopy::Mirror { .. } => progress.mirror.unwrap_or_default().cursor.index,
        _ => progress.index,
    }
}

/// False if rows were replaced while they were read: what was read does not count.
pub(super) fn is_whole(route: &Route, reached: &Reached) -> bool {
    let now = route.group().and_then(|group| group.generation());
    now == Some(reached.generation)
}

/// The rows here are being cleared or replaced: what is missing in them may
/// exist.
pub(super) fn replaced(route: &Route) -> Error {
    let reason = match &route.here {
        LocalCopy::Mirror { .. } => Reason::Backfilling,
        LocalCopy::Home(_) | LocalCopy::Nothing => Reason::NoQuorum,
    };
    Error::new(
        reason,
        "the records on this node are being replaced; read at another one, or later",
    )
    .fact("home", &route.home)
    .retry_after(WAIT_STEP)
}
