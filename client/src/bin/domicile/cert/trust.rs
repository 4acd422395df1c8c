//! `domicile cert trust`.

use std::path::{Path, PathBuf};

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::{Claims, Subject};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::authority::Directory;
use super::disk::{self, Disk, PUBLIC};
use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Takes the roots of other regions, which certificates made from then on bring along.
///
/// Each file is the bundle of one region, as its authority has it in bundles/. It takes
/// the place of the one that was there. Compare the fingerprints with whoever runs that
/// region, on another way than the files came. Example: domicile cert trust --ca eu-ca
/// us.pem ap.pem
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory of the own region's authority.
    #[arg(long, value_name = "DIRECTORY")]
    ca: PathBuf,

    /// The bundles of the other regions.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Says what would be taken, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The bundle of another region.
struct Bundle {
    region: RegionName,
    pem: Vec<u8>,
    roots: Vec<Claims>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    super::dry_run_said(context, arguments.dry_run);
    let directory = Directory::new(&arguments.ca);
    let authority = directory.load()?;
    let mut known = directory.known(authority.cluster())?;
    let mut taken: Vec<Bundle> = Vec::new();
    // All are looked at before one is written.
    for path in &arguments.files {
        let bundle = read(path, &authority)?;
        if taken.iter().any(|other| other.region == bundle.region) {
            return Err(Failure::usage(format!(
                "two files are of region {}; give one bundle with all of its roots",
                bundle.region.as_str()
            )));
        }
        let added = known.bundles.add(bundle.region.clone(), &bundle.pem);
        added.map_err(|error| wrong(path, &error))?;
        taken.push(bundle);
    }
    let disk = Disk::new(arguments.dry_run);
    let mut shown = Vec::new();
    let mut rows = Vec::new();
    for bundle in &taken {
        let before = known.files.get(&bundle.region);
        if before.is_some_and(|before| !has_one_of(before, &bundle.roots)) {
            context.output.message(&format!(
                "warning: none of the roots of region {} is one that was known; compare the \
                 fingerprints",
                bundle.region.as_str()
            ));
        }
        let unchanged = before == Some(&bundle.pem);
        if !unchanged {
            disk.replace(&directory.bundle(&bundle.region), PUBLIC, &bundle.pem)?;
        }
        shown.push(bundle_json(bundle, unchanged));
        rows.extend(bundle.roots.iter().map(|root| {
            let until = super::written(root.not_after);
            let fingerprint = super::fingerprint(&root.fingerprint);
            [bundle.region.to_string(), until, fingerprint]
        }));
    }
    let json = json!({ "trusted": shown, "dry_run": arguments.dry_run });
    let text = || table(["REGION", "VALID UNTIL", "SHA-256"], rows.clone());
    context.output.document(&json, text, b"")?;
    context.output.message(
        "next: compare the fingerprints; then renew the certificates of the nodes and clients \
         of this region, or copy the bundles into theirs",
    );
    Ok(())
}

fn bundle_json(bundle: &Bundle, unchanged: bool) -> Value {
    let roots = bundle.roots.iter().map(|root| {
        json!({
            "serial": root.serial,
            "not_after": super::written(root.not_after),
            "fingerprint_sha256": super::fingerprint(&root.fingerprint),
        })
    });
    json!({
        "region": bundle.region.as_str(),
        "roots": roots.collect::<Vec<_>>(),
        "unchanged": unchanged,
    })
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::local(format!("{}: {error}", path.display()))
}

/// Reads a file, all of whose roots must name one other region of the same cluster.
fn read(path: &Path, authority: &Authority) -> Result<Bundle, Failure> {
    let pem = disk::read(path)?.ok_or_else(|| wrong(path, &"there is no such file"))?;
    let mut roots = Vec::new();
    let mut of: Option<RegionName> = None;
    for der in CertificateDer::pem_slice_iter(&pem) {
        let der = der.map_err(|_| wrong(path, &"it is no PEM"))?;
        let root = Claims::read(&der).map_err(|error| wrong(path, &error))?;
        let Subject::Authority(region, cluster) = &root.subject else {
            let what = format!("it is the certificate of {}, no root", root.subject);
            return Err(wrong(path, &what));
        };
        if cluster != authority.cluster() {
            let what = format!(
                "a root is of cluster {cluster}, not {}",
                authority.cluster()
            );
            return Err(wrong(path, &what));
        }
        if region == authority.region() {
            let what = "a root is of the authority's own region, of which `domicile cert rotate` \
                        keeps the bundle";
            return Err(wrong(path, &what));
        }
        if of.as_ref().is_some_and(|other| other != region) {
            return Err(wrong(path, &"its roots are of more than one region"));
        }
        of = Some(region.clone());
        roots.push(root);
    }
    let region = of.ok_or_else(|| wrong(path, &"it holds no certificate"))?;
    Ok(Bundle { region, pem, roots })
}

/// Whether one of the roots was known.
fn has_one_of(before: &[u8], roots: &[Claims]) -> bool {
    let before = CertificateDer::pem_slice_iter(before).filter_map(Result::ok);
    let mut before = before.filter_map(|der| Claims::read(&der).ok());
    before.any(|known| {
        roots
            .iter()
            .any(|root| root.fingerprint == known.fingerprint)
    })
}
