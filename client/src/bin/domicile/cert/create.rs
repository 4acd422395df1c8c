//! `domicile cert ca`.

use std::path::PathBuf;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::{Claims, ClusterName};
use serde_json::json;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::authority::Directory;
use super::disk::{Disk, PUBLIC, SECRET};
use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Makes the authority of a region.
///
/// Writes ca.crt, ca.key and bundles/REGION.pem, and overwrites none of them. Whoever
/// reads ca.key can be any node of the region: keep the directory off the machines of the
/// cluster. Example: domicile cert ca --region eu --cluster store.example --out eu-ca
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The region.
    #[arg(long, value_name = "REGION", value_parser = region)]
    region: RegionName,

    /// The name of the cluster in its certificates, the same for every region. One that
    /// begins with `dev.` is for development: its nodes listen on this machine alone.
    #[arg(long, value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,

    /// The directory to write into. It is made, for its owner alone.
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,

    /// How long the authority is valid, as a number with `m`, `h` or `d`.
    #[arg(long, value_name = "DURATION", default_value = "1825d", value_parser = super::validity)]
    valid: Duration,

    /// Says what would be made, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Reads the name of a region.
fn region(text: &str) -> Result<RegionName, String> {
    RegionName::new(text).map_err(|error| error.to_string())
}

/// Reads the name of a cluster.
fn cluster(text: &str) -> Result<ClusterName, String> {
    ClusterName::new(text).map_err(|error| error.to_string())
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    super::dry_run_said(context, arguments.dry_run);
    let disk = Disk::new(arguments.dry_run);
    let directory = Directory::new(&arguments.out);
    let authority = create(
        &disk,
        &directory,
        (&arguments.region, &arguments.cluster),
        super::now(),
        arguments.valid,
    )?;
    let claims = claims(&authority)?;
    let (id, until) = (claims.subject.to_string(), super::written(claims.not_after));
    let fingerprint = super::fingerprint(&claims.fingerprint);
    let bundle = directory.bundle(authority.region());
    let json = json!({
        "region": authority.region().as_str(),
        "cluster": authority.cluster().as_str(),
        "id": id,
        "directory": arguments.out,
        "not_after": until,
        "fingerprint_sha256": fingerprint,
        "bundle": bundle,
        "dry_run": arguments.dry_run,
    });
    let text = || {
        table(
            ["AUTHORITY", "VALID UNTIL", "SHA-256"],
            [[id.clone(), until.clone(), fingerprint.clone()]],
        )
    };
    context
        .output
        .document(&json, text, fingerprint.as_bytes())?;
    context.output.message(&format!(
        "next: give {} to whoever runs the other regions, and take theirs with `domicile cert \
         trust`; then make certificates with `domicile cert node` and `domicile cert client`",
        bundle.display()
    ));
    Ok(())
}

/// Makes an authority in a directory that has none.
pub(super) fn create(
    disk: &Disk,
    directory: &Directory,
    (region, cluster): (&RegionName, &ClusterName),
    now: u64,
    valid: Duration,
) -> Result<Authority, Failure> {
    let authority = Authority::new(region, cluster, now, valid.as_secs())
        .map_err(|error| Failure::local(error.to_string()))?;
    let bundle = directory.bundle(region);
    for path in [&directory.certificate(), &directory.key(), &bundle] {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::local(format!(
                "{} is there already, and is not overwritten; choose another directory",
                path.display()
            )));
        }
    }
    disk.private_directory(directory.path())?;
    disk.public_directory(&directory.bundles())?;
    disk.create(&directory.key(), SECRET, authority.key().as_bytes())?;
    let certificate = authority.certificate().as_bytes();
    disk.create(&directory.certificate(), PUBLIC, certificate)?;
    disk.create(&bundle, PUBLIC, certificate)?;
    Ok(authority)
}

/// What the certificate of an authority says.
pub(super) fn claims(authority: &Authority) -> Result<Claims, Failure> {
    let der = CertificateDer::from_pem_slice(authority.certificate().as_bytes());
    let der = der.map_err(|_| Failure::local("the authority's certificate is no PEM"))?;
    Claims::read(&der).map_err(|error| Failure::local(error.to_string()))
}
