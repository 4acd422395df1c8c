//! `domicile cert node` and `domicile cert client`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use domicile_proto::identity::mint::{Authority, Minted};
use domicile_proto::identity::{Claims, Credentials, Files, SpiffeId, Subject, Workload};
use serde_json::json;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use super::authority::{self, Directory, Known};
use super::disk::{self, Disk, PUBLIC, SECRET};
use super::{DAY_S, DEV_VALID, create};
use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// For how long a certificate is valid, when nothing is said.
const VALID_DEFAULT: Duration = Duration::from_secs(30 * DAY_S);

/// Makes the certificate of a node, or renews it.
///
/// Writes tls.crt, tls.key and bundles/ with the roots of every region that the
/// authority's directory has. Run again into the same directory, it puts a new key and a
/// new certificate in the place of the old ones; a node that runs takes them up by itself.
/// Example: domicile cert node --ca eu-ca --node 1 --out eu-1
#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    /// The number of the node in the authority's region, from 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    node: u64,

    #[command(flatten)]
    issue: Issue,
}

/// Makes the certificate of a client, or renews it.
///
/// It is for services, and for people who run this program: with --tls-dir it goes by it.
/// It may call nodes and cannot be called. Run again into the same directory, it renews.
/// Example: domicile cert client --ca eu-ca --name orders --out orders
#[derive(Debug, clap::Args)]
pub(crate) struct Client {
    /// The name of the service or person: a-z, 0-9, `-`, `.` and `_`.
    #[arg(long, value_name = "NAME")]
    name: String,

    #[command(flatten)]
    issue: Issue,
}

/// What both need.
#[derive(Debug, clap::Args)]
struct Issue {
    /// The directory of the region's authority.
    #[arg(long, value_name = "DIRECTORY")]
    ca: PathBuf,

    /// The directory to write into.
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,

    /// How long the certificate is valid, as a number with `m`, `h` or `d`. Default: 30d;
    /// 24h, which is the most, where the cluster's name begins with `dev.`.
    #[arg(long, value_name = "DURATION", value_parser = super::validity)]
    valid: Option<Duration>,

    /// Says what would be made, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn node(context: &Context, arguments: &Node) -> Result<(), Failure> {
    let authority = Directory::new(&arguments.issue.ca).load()?;
    issue(
        context,
        &arguments.issue,
        &authority,
        &Workload::Node(arguments.node),
    )
}

pub(super) fn client(context: &Context, arguments: &Client) -> Result<(), Failure> {
    let authority = Directory::new(&arguments.issue.ca).load()?;
    let id = SpiffeId::service(authority.region(), authority.cluster(), &arguments.name);
    let id = id.map_err(|error| Failure::usage(error.to_string()))?;
    issue(context, &arguments.issue, &authority, &id.workload)
}

fn issue(
    context: &Context,
    arguments: &Issue,
    authority: &Authority,
    workload: &Workload,
) -> Result<(), Failure> {
    super::dry_run_said(context, arguments.dry_run);
    let now = super::now();
    let valid = valid(context, arguments.valid, authority, now)?;
    let known = Directory::new(&arguments.ca).known(authority.cluster())?;
    let disk = Disk::new(arguments.dry_run);
    let issued = write(
        &disk,
        &arguments.out,
        authority,
        workload,
        &known,
        now,
        valid,
    )?;
    let id = issued.credentials.id().to_string();
    let until = super::written(issued.credentials.identity().not_after());
    let regions: Vec<_> = known.files.keys().map(|region| region.as_str()).collect();
    let json = json!({
        "id": id,
        "serial": issued.credentials.identity().serial(),
        "directory": arguments.out,
        "not_after": until,
        "bundles": regions,
        "renewed": issued.is_renewal,
        "dry_run": arguments.dry_run,
    });
    let text = || {
        table(
            ["ID", "VALID UNTIL", "BUNDLES"],
            [[id.clone(), until.clone(), regions.join(" ")]],
        )
    };
    context.output.document(&json, text, id.as_bytes())?;
    if regions.len() == 1 {
        context.output.message(&format!(
            "only the roots of region {} are known: what is of another region is not taken \
             before `domicile cert trust`",
            authority.region().as_str()
        ));
    }
    Ok(())
}

/// For how long a certificate is valid, in seconds.
fn valid(
    context: &Context,
    asked: Option<Duration>,
    authority: &Authority,
    now: u64,
) -> Result<u64, Failure> {
    let is_dev = authority.cluster().is_dev();
    let valid = match asked {
        Some(asked) if is_dev && asked > DEV_VALID => {
            return Err(Failure::usage(format!(
                "cluster {} is for development: its certificates are valid for 24h at most",
                authority.cluster()
            )));
        }
        Some(asked) => asked,
        None if is_dev => {
            context
                .output
                .message("the cluster is for development: the certificate is valid for 24h");
            DEV_VALID
        }
        None => VALID_DEFAULT,
    };
    let left = create::claims(authority)?.not_after.saturating_sub(now);
    if left == 0 {
        return Err(Failure::local(
            "the authority has expired: nobody takes what it makes; see `domicile cert rotate`",
        ));
    }
    if left < valid.as_secs() {
        context.output.message(
            "warning: the certificate ends with its authority, earlier than asked for; see \
             `domicile cert rotate`",
        );
    }
    Ok(valid.as_secs().min(left))
}

/// What was made.
pub(super) struct Issued {
    /// As it counts for who reads the directory.
    pub(super) credentials: Credentials,
    /// Whether there was one before.
    pub(super) is_renewal: bool,
}

/// Makes a certificate and writes it, with the bundles. The key is in place before its
/// certificate is: who reads between finds that they do not fit, and goes on with what it
/// has.
pub(super) fn write(
    disk: &Disk,
    out: &Path,
    authority: &Authority,
    workload: &Workload,
    known: &Known,
    now: u64,
    valid: u64,
) -> Result<Issued, Failure> {
    let local = |error: &dyn std::fmt::Display| Failure::local(error.to_string());
    let Minted { chain, key } = authority
        .issue(workload, now, valid)
        .map_err(|error| local(&error))?;
    let name = |region: &str| format!("{region}{}", Files::BUNDLE_SUFFIX);
    let bundles = known.files.iter();
    let files = Files {
        certificate: chain.into_bytes(),
        key: Zeroizing::new(key.as_bytes().to_vec()),
        bundles: bundles
            .map(|(region, pem)| (name(region.as_str()), pem.clone()))
            .collect(),
    };
    // As whoever reads it will: nothing is replaced by what nobody takes.
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let credentials = files.credentials(at).map_err(|error| local(&error))?;
    let (certificate, key) = (out.join(Files::CERTIFICATE), out.join(Files::KEY));
    let is_renewal = check_same(&certificate, credentials.id())?;
    disk.private_directory(out)?;
    disk.public_directory(&out.join(Files::BUNDLES))?;
    for (region, pem) in &known.files {
        let path = authority::bundle(out, region);
        if disk::read(&path)?.as_ref() != Some(pem) {
            disk.replace(&path, PUBLIC, pem)?;
        }
    }
    disk.replace(&key, SECRET, &files.key)?;
    disk.replace(&certificate, PUBLIC, &files.certificate)?;
    Ok(Issued {
        credentials,
        is_renewal,
    })
}

/// Refuses to put a certificate in the place of another workload's. Answers whether there
/// is one.
fn check_same(path: &Path, id: &SpiffeId) -> Result<bool, Failure> {
    let Some(pem) = disk::read(path)? else {
        return Ok(false);
    };
    let there = CertificateDer::from_pem_slice(&pem)
        .ok()
        .and_then(|der| Claims::read(&der).ok());
    match there.map(|claims| claims.subject) {
        Some(Subject::Workload(there)) if there == *id => Ok(true),
        Some(other) => Err(Failure::local(format!(
            "{} is the certificate of {other}, not of {id}; choose another directory",
            path.display()
        ))),
        None => Err(Failure::local(format!(
            "{} is there and no certificate of this cluster; choose another directory",
            path.display()
        ))),
    }
}
