//! `domicile get`.

use std::time::Duration;

use domicile_client::{Meta, Token};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::table;
use crate::{Context, keys};

/// Reads a record.
///
/// Exits with 5 if there is none. Example: domicile get eu-only/user/42 -o raw
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The address of the record, TAG/KEY, split at the first slash.
    address: String,
    #[command(flatten)]
    freshness: Freshness,
}

/// How fresh a read must be.
#[derive(Debug, clap::Args)]
pub(crate) struct Freshness {
    /// How fresh the answer must be: `strong` is confirmed by a quorum of the
    /// home, `local` is whatever the node has, `bounded` is local but not
    /// older than `--max-staleness`. Default: strong, or bounded if
    /// `--max-staleness` is given.
    #[arg(long, value_enum, value_name = "LEVEL")]
    level: Option<Level>,

    /// The greatest age of the answer, as in 250ms, 5s or 2m.
    #[arg(long, value_name = "DURATION", value_parser = crate::duration)]
    max_staleness: Option<Duration>,

    /// Reads locally, but nothing older than this token of an earlier write
    /// or read, as `-o json` shows it.
    #[arg(long, value_name = "BASE64", conflicts_with_all = ["level", "max_staleness"])]
    at_least: Option<String>,
}

/// The levels by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Strong,
    Local,
    Bounded,
}

impl Freshness {
    /// The read as it was asked for.
    pub(crate) fn apply<R: Fresh>(&self, read: R) -> Result<R, Failure> {
        if let Some(token) = &self.at_least {
            return Ok(read.at_least(&Token::from(keys::parse_token(token)?)));
        }
        match (self.level, self.max_staleness) {
            (None | Some(Level::Strong), None) => Ok(read),
            (Some(Level::Local), None) => Ok(read.local()),
            (None | Some(Level::Bounded | Level::Local), Some(bound)) => {
                Ok(read.max_staleness(bound))
            }
            (Some(Level::Strong), Some(_)) => Err(Failure::usage(
                "a strong read has no age; leave --max-staleness away",
            )),
            (Some(Level::Bounded), None) => Err(Failure::usage(
                "--level bounded needs --max-staleness, as in --max-staleness 5s",
            )),
        }
    }
}

/// The builders of reads.
pub(crate) trait Fresh: Sized {
    /// Reads locally.
    fn local(self) -> Self;
    /// Reads nothing older.
    fn max_staleness(self, bound: Duration) -> Self;
    /// Reads nothing older than a position.
    fn at_least(self, token: &Token) -> Self;
}

macro_rules! fresh {
    ($($builder:ty),*) => {$(
        impl Fresh for $builder {
            fn local(self) -> Self {
                self.local()
            }
            fn max_staleness(self, bound: Duration) -> Self {
                self.max_staleness(bound)
            }
            fn at_least(self, token: &Token) -> Self {
                self.at_least(token)
            }
        }
    )*};
}
fresh!(domicile_client::Get, domicile_client::Scan);

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let encoding = context.global.key_encoding;
    let address = encoding.address(&arguments.address)?;
    let client = context.connect().await?;
    let tag = client.tag(address.tag.as_str())?;
    let got = arguments.freshness.apply(tag.get(address.key))?.await?;
    let record = got.record.ok_or(Failure::NotFound)?;
    let (key, value) = (record.key.as_bytes(), record.value.as_bytes());
    let json = json!({
        "tag": address.tag.as_str(),
        "key": keys::value(key),
        "value": keys::value(value),
        "version": record.version.to_string(),
        "meta": meta_json(&got.meta),
    });
    let text = || {
        let row = [
            format!("{}/{}", address.tag, encoding.encode(key)),
            keys::text(value),
            record.version.to_string(),
            got.meta.served_by.clone(),
            got.meta.level.to_string(),
            lag_text(&got.meta),
        ];
        table(
            ["ADDRESS", "VALUE", "VERSION", "SERVED BY", "LEVEL", "LAG"],
            [row],
        )
    };
    context.output.document(&json, text, value)
}

/// Where a read stands, for programs.
pub(crate) fn meta_json(meta: &Meta) -> Value {
    json!({
        "served_by": meta.served_by,
        "level": meta.level.name(),
        "lag_ms": meta.lag.map(|lag| lag.as_millis() as u64),
        "as_of": meta.as_of.to_string(),
        "token": keys::token(meta.token.as_bytes()),
    })
}

/// How old an answer may be, for people.
pub(crate) fn lag_text(meta: &Meta) -> String {
    match meta.lag {
        None => "unknown".to_owned(),
        Some(lag) if lag < Duration::from_secs(10) => format!("{}ms", lag.as_millis()),
        Some(lag) => format!("{}s", lag.as_secs()),
    }
}
