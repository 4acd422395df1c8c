//! The certificate and the roots in force, and handshakes by them.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use domicile_proto::address::RegionName;
use domicile_proto::identity::tls::{
    Expected, client_config, identity_of, refused, server_config, server_name,
};
use domicile_proto::identity::{
    Credentials, Files, Identity, Refusal, Refused, SpiffeId, Use, Workload,
};
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::directory;
use crate::env::Env;
use crate::error::{Error, Result};

/// How long a handshake may take: several round trips between the farthest regions.
pub(super) const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);

/// How long at most until an open connection is looked at again: the wall clock, by
/// which certificates count, may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How long a connection may still go on whose other end would not be let in any more.
const GRACE: Duration = Duration::from_secs(15);

/// A node's certificate and the roots it goes by, as they are in force now.
pub struct Tls {
    env: Env,
    directory: PathBuf,
    current: ArcSwap<Current>,
    /// Counts what was in force so far.
    changed: watch::Sender<u64>,
}

/// What is in force.
pub(super) struct Current {
    /// What it was made of.
    pub(super) files: Files,
    credentials: Credentials,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the directory of a node's certificate, as [`Tls::read`] does. An error if it
    /// is not this node's.
    pub fn open(env: Env, directory: &Path, region: &RegionName, node: u64) -> Result<Arc<Self>> {
        let tls = Self::read(env, directory)?;
        let id = tls.id();
        if id.region != *region || id.workload != Workload::Node(node) {
            return Err(Error::invalid(format!(
                "the certificate in {} is of {id}, and this is node {region}/{node}; check \
                 `region`, `node` and `tls_dir`",
                directory.display()
            )));
        }
        Ok(tls)
    }

    /// Reads the directory of any workload's certificate. An error if everybody on the
    /// machine may read its key.
    pub fn read(env: Env, directory: &Path) -> Result<Arc<Self>> {
        directory::check_mode(directory)?;
        let current = Current::of(&env, directory::read(directory)?)?;
        let (changed, _) = watch::channel(1);
        Ok(Arc::new(Tls {
            env,
            directory: directory.to_owned(),
            current: ArcSwap::from_pointee(current),
            changed,
        }))
    }

    /// Who this node is.
    pub fn id(&self) -> SpiffeId {
        self.current.load().credentials.id().clone()
    }

    /// This node, as others see it.
    pub fn identity(&self) -> Identity {
        self.current.load().credentials.identity().clone()
    }

    /// The regions whose workloads are known here.
    pub fn regions(&self) -> Vec<RegionName> {
        let current = self.current.load();
        current.credentials.bundles().regions().cloned().collect()
    }

    /// Counts what was in force so far, this included, and tells when that changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Shakes hands with who called, and says who that is.
    pub async fn accept<T>(&self, io: T) -> Result<(server::TlsStream<T>, Identity), Unidentified>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.current.load_full();
        let handshake = TlsAcceptor::from(current.server.clone()).accept(io);
        let stream = within(HANDSHAKE_WAIT, handshake).await?;
        let bundles = current.credentials.bundles();
        let identity = identity_of(bundles, stream.get_ref().1, Use::Client)?;
        Ok((stream, identity))
    }

    /// Shakes hands with who was called, and says who that is.
    pub async fn connect<T>(
        &self,
        io: T,
        expected: Expected,
    ) -> Result<(client::TlsStream<T>, Identity), Unidentified>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.current.load_full();
        let config = client_config(&current.credentials, expected);
        let handshake = TlsConnector::from(config).connect(server_name(), io);
        let stream = within(HANDSHAKE_WAIT, handshake).await?;
        let bundles = current.credentials.bundles();
        let identity = identity_of(bundles, stream.get_ref().1, Use::Server)?;
        Ok((stream, identity))
    }

    /// Waits until a workload would not be let in any more, and says why.
    pub async fn lapsed(self: Arc<Self>, identity: Identity, used: Use) -> Refused {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let now = self.env.wall_ms() / 1000;
            let verified = {
                let current = self.current.load();
                let bundles = current.credentials.bundles();
                bundles.verify(identity.chain(), unix(now), used)
            };
            if let Err(refused) = verified {
                // Whoever has another certificate by now makes its connection anew.
                tokio::time::sleep(GRACE).await;
                return refused;
            }
            let left = Duration::from_secs(identity.not_after().saturating_sub(now) + 1);
            let again = tokio::time::sleep(left.min(LOOK_AGAIN));
            tokio::select! {
                () = again => {}
                // An error means that the node ends.
                _ = changes.changed() => {}
            }
        }
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Puts something else in force. An error if it cannot be, or is of another workload:
    /// then what was in force stays.
    pub(super) fn put_in_force(&self, files: Files) -> Result<()> {
        let next = Current::of(&self.env, files)?;
        let (own, other) = (self.id(), next.credentials.id());
        if own != *other {
            return Err(Error::invalid(format!(
                "the certificate is of {other}, and this node is {own}"
            )));
        }
        self.current.store(Arc::new(next));
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }
}

impl Current {
    fn of(env: &Env, files: Files) -> Result<Self> {
        let credentials = files.credentials(unix(env.wall_ms() / 1000));
        let credentials = credentials.map_err(|refused| Error::invalid(refused.message))?;
        Ok(Current {
            server: server_config(&credentials),
            credentials,
            files,
        })
    }
}

fn unix(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

async fn within<T>(
    wait: Duration,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, Unidentified> {
    match tokio::time::timeout(wait, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match refused(&error) {
            Some(refused) => Unidentified::Refused(refused.clone()),
            None => Unidentified::Failed(error),
        }),
        Err(_) => Err(Unidentified::Failed(io::ErrorKind::TimedOut.into())),
    }
}

/// Nobody knows who is at the other end.
#[derive(Debug)]
pub enum Unidentified {
    /// Its certificate was not taken.
    Refused(Refused),
    /// There was no handshake, or the other end refused this one.
    Failed(io::Error),
}

impl Unidentified {
    /// The stable name of why, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Unidentified::Refused(refused) => refused.refusal.name(),
            Unidentified::Failed(error) => match alert(error) {
                Some(_) => "refused_there",
                None => "no_handshake",
            },
        }
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let refusals = Refusal::ALL.into_iter().map(Refusal::name);
        refusals.chain(["refused_there", "no_handshake"])
    }
}

/// Why nobody knows who is at the other end, where that is behind an error of something
/// that was asked over the connection: a refusal may come only then (TLS 1.3).
pub fn unidentified(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(known) = error.downcast_ref::<Unidentified>() {
            return Some(known.to_string());
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(refused) = refused(io) {
                return Some(refused.to_string());
            }
            if let Some(alert) = alert(io) {
                return Some(told(alert));
            }
            if let Some(known) = io.get_ref().and_then(|e| e.downcast_ref::<Unidentified>()) {
                return Some(known.to_string());
            }
        }
        next = error.source();
    }
    None
}

/// What the other end's alert means.
fn told(alert: rustls::AlertDescription) -> String {
    format!("the other end refused this node's certificate ({alert:?}); see its log")
}

/// What the other end said when it refused this one.
fn alert(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

impl From<Refused> for Unidentified {
    fn from(refused: Refused) -> Self {
        Unidentified::Refused(refused)
    }
}

impl fmt::Display for Unidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unidentified::Refused(refused) => refused.fmt(f),
            Unidentified::Failed(error) => match alert(error) {
                Some(alert) => f.write_str(&told(alert)),
                None => match error.source() {
                    Some(source) => write!(f, "there was no TLS handshake: {source}"),
                    None => write!(f, "there was no TLS handshake: {error}"),
                },
            },
        }
    }
}

impl std::error::Error for Unidentified {}
