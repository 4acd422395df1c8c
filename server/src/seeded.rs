//! Bugs put in on purpose, to see that the harness finds them.
//!
//! Each is a question at the place where it would be made: [`is_on`]. Without the
//! feature `seeded-bugs` the answer is the constant `false`, and nothing of a bug is in
//! the program. With it, a process has the one bug that the variable
//! `DOMICILE_SEEDED_BUG` names. The same program stands in for a build of the next
//! feature level, to see that two builds work side by side, and forms tags of several
//! ranges, which nothing else does yet.
//!
//! Not done here: finding the bugs (the crate `domicile-jepsen`).

use domicile_proto::disk::v1::KeySpan;

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident = $name:literal,)+) => {
        /// A bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $what])+ $bug,)+
        }

        /// Every bug with its name and what it does.
        #[cfg(feature = "seeded-bugs")]
        pub const ALL: &[(Bug, &str, &str)] =
            &[$((Bug::$bug, $name, concat!($($what),+)),)+];
    };
}

bugs! {
    /// The log acknowledges what it has not synced.
    LogUnsynced = "log-unsynced",
    /// A vote is not written down.
    VoteForgotten = "vote-forgotten",
    /// The log is purged of what the state has not on disk.
    PurgeEarly = "purge-early",
    /// A strong read is answered by any replica as it is.
    ReadUnconfirmed = "read-unconfirmed",
    /// Who believes to lead answers strong reads without asking a quorum.
    ReadOfDeposed = "read-of-deposed",
    /// A strong read does not wait until what it asked for is applied.
    ReadBeforeApply = "read-before-apply",
    /// A write is acknowledged before a quorum has it.
    AckEarly = "ack-early",
    /// A write of unknown outcome is reported as not applied.
    UnknownIsFailed = "unknown-is-failed",
    /// A write that is to wait for mirrors is acknowledged without them.
    MirrorsNotAwaited = "mirrors-not-awaited",
    /// Request ids are not remembered.
    RetryAppliedTwice = "retry-applied-twice",
    /// A condition is not looked at.
    ConditionIgnored = "condition-ignored",
    /// Versions follow the wall clock alone.
    VersionOfClock = "version-of-clock",
    /// A delete leaves the record.
    DeleteForgotten = "delete-forgotten",
    /// A local read says that it is not behind.
    LagZero = "lag-zero",
    /// The lag counts from the answer of a probe, not from its question.
    LagFromAnswer = "lag-from-answer",
    /// A mirror counts as fresh before it has what the home confirmed.
    MirrorUnreached = "mirror-unreached",
    /// The feed leaves deletes out.
    FeedSkipsDeletes = "feed-skips-deletes",
    /// The feed leaves the last record of a batch out.
    FeedSkipsLast = "feed-skips-last",
    /// A sender that begins anew leaves the first change out.
    ResumeSkips = "resume-skips",
    /// A snapshot leaves a row out.
    SnapshotDropsRow = "snapshot-drops-row",
    /// A scan leaves out the record that a page begins with.
    ScanSkips = "scan-skips",
    /// No gate and no node asks which region may have what.
    AccessUnchecked = "access-unchecked",
    /// The home ships every tag to every region, past its own gate. The
    /// receivers must refuse it: no promise may break.
    LyingSender = "lying-sender",
    /// The position that a read must have reached is not looked at.
    TokenIgnored = "token-ignored",
    /// A write that changed nothing names its own log entry, which no mirror
    /// hears of.
    TokenOfNothing = "token-of-nothing",
    /// A mirror answers while it is being filled.
    FillingServes = "filling-serves",
    /// A snapshot leaves out what retries must be told.
    SnapshotForgetsOutcomes = "snapshot-forgets-outcomes",
    /// A log line holds the key of a write.
    LogTellsKeys = "log-tells-keys",
}

/// The variable that names the bug of a process.
#[cfg(feature = "seeded-bugs")]
pub const VARIABLE: &str = "DOMICILE_SEEDED_BUG";

/// Whether this process has the bug.
#[cfg(feature = "seeded-bugs")]
pub fn is_on(bug: Bug) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Bug>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let wanted = std::env::var(VARIABLE).ok()?;
        let known = ALL.iter().find(|(_, name, _)| *name == wanted);
        assert!(known.is_some(), "{VARIABLE} names no bug: {wanted}");
        known.map(|(bug, _, _)| *bug)
    });
    *chosen == Some(bug)
}

/// Whether this process has the bug: never.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn is_on(_: Bug) -> bool {
    false
}

/// The variable that makes a process a build of the next feature level. It is no
/// setting of a node, which refuses what it does not know under its own prefix.
#[cfg(feature = "seeded-bugs")]
pub const NEXT_LEVEL_VARIABLE: &str = "SEEDED_LEVEL";

/// What a build of the next level adds to a command: a field that this one does
/// not know.
#[cfg(feature = "seeded-bugs")]
const NEXT_FIELD: [u8; 3] = [0xf8, 0x7f, 0x01];

/// The keys at which tags are split when they are formed.
#[cfg(feature = "seeded-bugs")]
pub static SPLITS: std::sync::OnceLock<std::collections::BTreeMap<String, Vec<Vec<u8>>>> =
    std::sync::OnceLock::new();

/// The spans that a tag begins with.
#[cfg(feature = "seeded-bugs")]
pub fn spans(tag: &str) -> Vec<KeySpan> {
    let splits = SPLITS.get().and_then(|splits| splits.get(tag));
    let keys = splits.into_iter().flatten();
    let keys = keys.map(|key| bytes::Bytes::copy_from_slice(key));
    let ends = keys.clone().map(Some).chain([None]);
    let starts = std::iter::once(bytes::Bytes::new()).chain(keys);
    let spans = starts.zip(ends);
    spans.map(|(start, end)| KeySpan { start, end }).collect()
}

/// The spans that a tag begins with: all its keys.
#[cfg(not(feature = "seeded-bugs"))]
pub fn spans(_: &str) -> [KeySpan; 1] {
    [KeySpan::default()]
}

/// The highest feature level that this build knows.
#[cfg(feature = "seeded-bugs")]
pub fn level() -> u64 {
    static NEXT: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let next = NEXT.get_or_init(|| std::env::var_os(NEXT_LEVEL_VARIABLE).is_some());
    domicile_proto::level::LEVEL + u64::from(*next)
}

/// The highest feature level that this build knows.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn level() -> u64 {
    domicile_proto::level::LEVEL
}

/// A command as it is written under a level: from the next one on it has what
/// this build does not know.
#[cfg(feature = "seeded-bugs")]
pub fn unknown(level: u64, mut command: Vec<u8>) -> Vec<u8> {
    if level > domicile_proto::level::LEVEL {
        command.extend(NEXT_FIELD);
    }
    command
}

/// A command as it is written under a level.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub fn unknown(_: u64, command: Vec<u8>) -> Vec<u8> {
    command
}

/// The part of a command that this build knows, if it is one of the next level
/// and knows the rest, too.
#[cfg(feature = "seeded-bugs")]
pub fn known(command: bytes::Bytes) -> bytes::Bytes {
    if level() > domicile_proto::level::LEVEL && command.ends_with(&NEXT_FIELD) {
        return command.slice(..command.len() - NEXT_FIELD.len());
    }
    command
}

/// The part of a command that this build knows.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub fn known(command: bytes::Bytes) -> bytes::Bytes {
    command
}
