//! `domicile scan`.

use domicile_client::{Meta, Record};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::get::{Freshness, lag_text, meta_json};
use crate::output::{Format, table};
use crate::{Context, keys};

/// How many records are asked for at once.
const PAGE: usize = 1_000;

/// Lists records in key order, all at one version.
///
/// Example: domicile scan eu-only/user/ --limit 10
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The tag, alone for all its records, or TAG/PREFIX for those whose keys
    /// begin so.
    #[arg(value_name = "TAG[/PREFIX]")]
    address: String,

    /// The first key, inclusive.
    #[arg(long, value_name = "KEY")]
    start: Option<String>,

    /// The end key, exclusive.
    #[arg(long, value_name = "KEY")]
    end: Option<String>,

    /// The most records to list; 0 lists all.
    #[arg(long, value_name = "RECORDS", default_value_t = 100)]
    limit: usize,

    #[command(flatten)]
    freshness: Freshness,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let encoding = context.global.key_encoding;
    let (tag, prefix) = arguments
        .address
        .split_once('/')
        .unwrap_or((&arguments.address, ""));
    if !prefix.is_empty() && (arguments.start.is_some() || arguments.end.is_some()) {
        return Err(Failure::usage(
            "a prefix is a start and an end; give either a prefix or --start and --end",
        ));
    }
    let limit = match arguments.limit {
        0 => usize::MAX,
        limit => limit,
    };
    let client = context.connect().await?;
    let mut scan = client.tag(tag)?.scan().page_size(limit.min(PAGE));
    if !prefix.is_empty() {
        scan = scan.prefix(encoding.decode(prefix)?);
    }
    if let Some(start) = &arguments.start {
        scan = scan.start(encoding.decode(start)?);
    }
    if let Some(end) = &arguments.end {
        scan = scan.end(encoding.decode(end)?);
    }
    let mut pages = arguments.freshness.apply(scan)?.pages();
    let mut all = Vec::new();
    let mut count = 0;
    let mut meta = Meta::default();
    let mut more = false;
    while let Some(mut page) = pages.next().await? {
        more = page.next_page_token().is_some() || page.records.len() > limit - count;
        page.records.truncate(limit - count);
        count += page.records.len();
        meta = page.meta.clone();
        match context.output.format() {
            // These need not wait for the end.
            Format::Jsonl => lines(context, tag, &page.records)?,
            Format::Raw => raw(context, &page.records)?,
            Format::Table | Format::Json => all.append(&mut page.records),
        }
        if count >= limit {
            break;
        }
    }
    match context.output.format() {
        Format::Json => {
            let records: Vec<_> = all.iter().map(|record| record_json(tag, record)).collect();
            let json = json!({ "records": records, "more": more, "meta": meta_json(&meta) });
            context.output.bytes(format!("{json:#}\n").as_bytes())?;
        }
        Format::Table => {
            let rows = all.iter().map(|record| {
                [
                    encoding.encode(record.key.as_bytes()),
                    keys::text(record.value.as_bytes()),
                    record.version.to_string(),
                ]
            });
            let text = table(["KEY", "VALUE", "VERSION"], rows);
            context.output.bytes(text.as_bytes())?;
        }
        Format::Jsonl | Format::Raw => {}
    }
    let records = match count {
        1 => "1 record".to_owned(),
        count => format!("{count} records"),
    };
    if more && matches!(context.output.format(), Format::Jsonl | Format::Raw) {
        context
            .output
            .message(&format!("{records}; there may be more, see --limit"));
    }
    if context.output.format() == Format::Table {
        context.output.message(&format!(
            "{records}, {} by {}, lag {}{}",
            meta.level,
            meta.served_by,
            lag_text(&meta),
            if more {
                "; there may be more, see --limit"
            } else {
                ""
            },
        ));
    }
    Ok(())
}

fn record_json(tag: &str, record: &Record) -> Value {
    json!({
        "tag": tag,
        "key": keys::value(record.key.as_bytes()),
        "value": keys::value(record.value.as_bytes()),
        "version": record.version.to_string(),
    })
}

fn lines(context: &Context, tag: &str, records: &[Record]) -> Result<(), Failure> {
    let mut text = String::new();
    for record in records {
        text += &format!("{}\n", record_json(tag, record));
    }
    context.output.bytes(text.as_bytes())
}

/// Values, each followed by a line break.
fn raw(context: &Context, records: &[Record]) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend_from_slice(record.value.as_bytes());
        bytes.push(b'\n');
    }
    context.output.bytes(&bytes)
}
