//! `domicile cert`: an authority for each region, and the certificates that it makes.
//!
//! It works on directories of this machine alone and calls nobody. The authority of a
//! region is in a directory (`authority`) with the roots of all regions, of which those
//! of others come by `trust`; it makes certificates of nodes and clients (`issue`) and is
//! replaced in three steps (`rotate`). What is in such directories is shown by `status`.
//! How files come to be there whole, and readable by no others, is in `disk`.
//!
//! Not done here: when certificates are renewed, and bringing them to other machines.

mod authority;
mod create;
mod disk;
mod issue;
mod rotate;
mod status;
mod trust;

use std::time::Duration;

use time::OffsetDateTime;
use tokio_rustls::rustls::pki_types::UnixTime;

use crate::Context;
use crate::failure::Failure;

const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 24 * HOUR_S;

/// For how long anything is valid at most: longer ones outlive their keys.
const VALID_DAYS_MAX: u64 = 3_650;

/// For how long a certificate of a cluster for development is valid at most: it is not to
/// be found in use by anybody else later.
const DEV_VALID: Duration = Duration::from_secs(DAY_S);

/// Makes and shows certificates, with which nodes and clients speak TLS.
///
/// Each region has an authority of its own. No node is asked: everything is in
/// directories of this machine.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Ca(create::Arguments),
    Node(issue::Node),
    Client(issue::Client),
    Trust(trust::Arguments),
    Rotate(rotate::Arguments),
    Status(status::Arguments),
}

pub(crate) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Ca(arguments) => create::run(context, &arguments),
        Command::Node(arguments) => issue::node(context, &arguments),
        Command::Client(arguments) => issue::client(context, &arguments),
        Command::Trust(arguments) => trust::run(context, &arguments),
        Command::Rotate(arguments) => rotate::run(context, &arguments),
        Command::Status(arguments) => status::run(context, &arguments),
    }
}

/// The time, in seconds since 1970.
fn now() -> u64 {
    UnixTime::now().as_secs()
}

/// Reads `90m`, `12h`, `30d`.
fn validity(text: &str) -> Result<Duration, String> {
    let wrong = || "a validity is a number with m, h or d, as in 30d".to_owned();
    let (number, seconds) = match text.char_indices().last() {
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], HOUR_S),
        Some((at, 'd')) => (&text[..at], DAY_S),
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        Some(valid @ 1..) if valid <= VALID_DAYS_MAX * DAY_S => Ok(Duration::from_secs(valid)),
        _ => Err(format!("a validity is from 1m to {VALID_DAYS_MAX}d")),
    }
}

/// A time in seconds since 1970 as RFC 3339 writes it.
fn written(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
    time.map_or_else(
        || "beyond the year 9999".to_owned(),
        |time| {
            let (date, clock) = (time.date(), time.time());
            format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
                date.year(),
                u8::from(date.month()),
                date.day(),
                clock.hour(),
                clock.minute(),
                clock.second()
            )
        },
    )
}

/// A fingerprint as other programs write it: `AB:CD:…`.
fn fingerprint(bytes: &[u8; 32]) -> String {
    let pairs = bytes.iter().map(|byte| format!("{byte:02X}"));
    pairs.collect::<Vec<_>>().join(":")
}

/// How a dry run begins what it says.
fn dry_run_said(context: &Context, is_dry: bool) {
    if is_dry {
        context.output.message("dry run: nothing is written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validity_has_a_unit_and_an_end() {
        assert_eq!(validity("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(validity("12h"), Ok(Duration::from_secs(12 * HOUR_S)));
        assert_eq!(validity("30d"), Ok(Duration::from_secs(30 * DAY_S)));
        for wrong in [
            "",
            "d",
            "30",
            "0d",
            "-1d",
            "1.5d",
            "3651d",
            "9é",
            "99999999999999999999d",
        ] {
            assert!(validity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(written(1_767_225_600), "2026-01-01T00:00:00Z");
        assert_eq!(written(u64::MAX), "beyond the year 9999");
    }
}
