//! `domicile cert status`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::{Claims, Files, Subject};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use zeroize::Zeroizing;

use super::authority;
use super::disk;
use super::{DAY_S, HOUR_S};
use crate::Context;
use crate::failure::Failure;
use crate::output::{Colour, Output, table};

/// The part of its life of which a certificate that has less left should be renewed.
const RENEW_PART: u64 = 3;

/// Shows the certificates in directories, and what is wrong with them.
///
/// It reads directories of authorities, nodes and clients, and calls nobody. The exit code
/// is 1 if anything has expired or does not fit together. What has less than a third of
/// its life left should be renewed: it is said, and is no failure. Example: domicile cert
/// status eu-ca eu-1 orders
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directories.
    #[arg(value_name = "DIRECTORY", required = true)]
    directories: Vec<PathBuf>,
}

/// A certificate, as it is shown.
#[derive(Debug)]
struct Shown {
    directory: PathBuf,
    /// The file, from the directory on.
    file: String,
    kind: Kind,
    /// `None`: it cannot be read.
    claims: Option<Claims>,
    /// Whether the key beside it is its own; `None`: there is none, or none is needed.
    has_key: Option<bool>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It makes others.
    Authority,
    /// A node's or a client's.
    Leaf,
    /// One of those that are gone by.
    Root,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Authority => "authority",
            Kind::Leaf => "leaf",
            Kind::Root => "root",
        }
    }
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let now = super::now();
    let mut shown = Vec::new();
    for directory in &arguments.directories {
        look(directory, now, &mut shown)?;
    }
    let is_well = shown.iter().all(|one| one.problems.is_empty());
    let list: Vec<_> = shown.iter().map(|one| one.json(now)).collect();
    let json = json!({ "ok": is_well, "certificates": list });
    let text = || text(&context.output, &shown, now);
    let raw = match is_well {
        true => "ok",
        false => "broken",
    };
    context.output.document(&json, text, raw.as_bytes())?;
    match is_well {
        true => Ok(()),
        false => Err(Failure::local(
            "a certificate has expired, or something does not fit together",
        )),
    }
}

/// Looks at everything in a directory.
fn look(directory: &Path, now: u64, shown: &mut Vec<Shown>) -> Result<(), Failure> {
    let before = shown.len();
    let authorities = ["ca", "next/ca", "previous/ca"];
    for name in authorities {
        let names = [format!("{name}.crt"), format!("{name}.key")];
        look_at_pair(directory, names, Kind::Authority, now, shown)?;
    }
    let names = [Files::CERTIFICATE, Files::KEY].map(str::to_owned);
    let leaf = shown.len();
    look_at_pair(directory, names, Kind::Leaf, now, shown)?;
    let bundles = look_at_roots(directory, now, shown)?;
    if let Some(leaf) = shown.get_mut(leaf).filter(|one| one.kind == Kind::Leaf) {
        leaf.check_whole(&bundles, now)?;
    }
    if shown.len() == before {
        return Err(Failure::local(format!(
            "there is no certificate in {}",
            directory.display()
        )));
    }
    Ok(())
}

/// Looks at a certificate and its key, if one of them is there.
fn look_at_pair(
    directory: &Path,
    [file, key]: [String; 2],
    kind: Kind,
    now: u64,
    shown: &mut Vec<Shown>,
) -> Result<(), Failure> {
    let (pem, key_path) = (disk::read(&directory.join(&file))?, directory.join(&key));
    let secret = disk::read(&key_path)?.map(Zeroizing::new);
    if pem.is_none() && secret.is_none() {
        return Ok(());
    }
    let mut one = Shown::new(directory, &file, kind);
    match CertificateDer::from_pem_slice(&pem.unwrap_or_default()) {
        Ok(der) => one.read(&der, now),
        Err(_) => one.problem("there is no certificate in it"),
    }
    let of_leaf = one.claims.as_ref().map(|claims| &claims.subject);
    if let Some(Subject::Authority(..)) = of_leaf.filter(|_| kind == Kind::Leaf) {
        one.problem("it is an authority's certificate");
    }
    match (&secret, &one.claims) {
        (None, _) => one.problem(&format!("there is no {key}")),
        (Some(secret), Some(claims)) => match claims.is_key(secret) {
            Ok(is_key) => {
                one.has_key = Some(is_key);
                if !is_key {
                    one.problem(&format!("{key} is the key of another certificate"));
                }
            }
            Err(error) => one.problem(&format!("{key}: {error}")),
        },
        (Some(_), None) => {}
    }
    if disk::is_readable_by_others(&key_path) {
        one.warnings.push(format!("{key} can be read by others"));
    }
    shown.push(one);
    Ok(())
}

/// Looks at the bundles. Answers what is in each file.
fn look_at_roots(
    directory: &Path,
    now: u64,
    shown: &mut Vec<Shown>,
) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut bundles = Vec::new();
    for name in authority::bundle_names(directory) {
        let pem = disk::read(&directory.join(Files::BUNDLES).join(&name))?.unwrap_or_default();
        let file = format!("{}/{name}", Files::BUNDLES);
        let region = RegionName::new(name.trim_end_matches(Files::BUNDLE_SUFFIX)).ok();
        let mut is_empty = true;
        for der in CertificateDer::pem_slice_iter(&pem) {
            is_empty = false;
            let mut one = Shown::new(directory, &file, Kind::Root);
            match der {
                Ok(der) => one.read(&der, now),
                Err(_) => one.problem("the PEM cannot be read"),
            }
            one.check_region(region.as_ref());
            shown.push(one);
        }
        if is_empty {
            let mut one = Shown::new(directory, &file, Kind::Root);
            one.problem("there is no certificate in it");
            shown.push(one);
        }
        bundles.push((name, pem));
    }
    Ok(bundles)
}

impl Shown {
    fn new(directory: &Path, file: &str, kind: Kind) -> Self {
        Shown {
            directory: directory.to_owned(),
            file: file.to_owned(),
            kind,
            claims: None,
            has_key: None,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn problem(&mut self, what: &str) {
        self.problems.push(what.to_owned());
    }

    /// Reads what the certificate says, and compares it with the time.
    fn read(&mut self, der: &CertificateDer<'_>, now: u64) {
        let claims = match Claims::read(der) {
            Ok(claims) => claims,
            Err(error) => return self.problem(&error.to_string()),
        };
        let life = claims.not_after.saturating_sub(claims.not_before);
        let left = claims.not_after.saturating_sub(now);
        if now > claims.not_after {
            self.problem("it has expired");
        } else if now < claims.not_before {
            self.problem("it is not valid yet");
        } else if left < life / RENEW_PART {
            let what = "less than a third of its life is left; renew it";
            self.warnings.push(what.to_owned());
        }
        self.claims = Some(claims);
    }

    /// Compares the region of a root with that of its bundle.
    fn check_region(&mut self, of: Option<&RegionName>) {
        let Some(of) = of else {
            return self.problem("the file is not named REGION.pem");
        };
        match self.claims.as_ref().map(|claims| &claims.subject) {
            Some(Subject::Workload(_)) => self.problem("it is no authority's certificate"),
            Some(Subject::Authority(region, _)) if region != of => {
                self.problem(&format!("it is a root of region {}", region.as_str()));
            }
            _ => {}
        }
    }

    /// Checks that a leaf, its key and the bundles beside it can be used together.
    fn check_whole(&mut self, bundles: &[(String, Vec<u8>)], now: u64) -> Result<(), Failure> {
        if !self.problems.is_empty() {
            return Ok(());
        }
        let file =
            |name: &str| disk::read(&self.directory.join(name)).map(Option::unwrap_or_default);
        let files = Files {
            certificate: file(Files::CERTIFICATE)?,
            key: Zeroizing::new(file(Files::KEY)?),
            bundles: bundles.iter().cloned().collect(),
        };
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
        if let Err(error) = files.credentials(at) {
            self.problem(&error.to_string());
        }
        Ok(())
    }

    fn json(&self, now: u64) -> Value {
        let claims = self.claims.as_ref();
        json!({
            "directory": self.directory,
            "file": self.file,
            "kind": self.kind.name(),
            "id": claims.map(|claims| claims.subject.to_string()),
            "serial": claims.map(|claims| claims.serial.as_str()),
            "not_before": claims.map(|claims| super::written(claims.not_before)),
            "not_after": claims.map(|claims| super::written(claims.not_after)),
            "remaining_s": claims.map(|claims| claims.not_after.saturating_sub(now)),
            "fingerprint_sha256": claims.map(|claims| super::fingerprint(&claims.fingerprint)),
            "key_fits": self.has_key,
            "bundles": self.bundles(),
            "problems": self.problems,
            "warnings": self.warnings,
        })
    }

    /// The regions whose roots are beside it; of a root, that of its file.
    fn bundles(&self) -> Vec<String> {
        let region = |file: &str| file.strip_suffix(Files::BUNDLE_SUFFIX).map(str::to_owned);
        if self.kind == Kind::Root {
            let name = self.file.rsplit('/').next().unwrap_or_default();
            return region(name).into_iter().collect();
        }
        authority::bundle_names(&self.directory)
            .iter()
            .filter_map(|name| region(name))
            .collect()
    }

    fn row(&self, now: u64) -> [String; 7] {
        let claims = self.claims.as_ref();
        let said = |say: &dyn Fn(&Claims) -> String| claims.map_or_else(|| "-".to_owned(), say);
        let key = match self.has_key {
            Some(true) => "fits",
            Some(false) => "other",
            None => "-",
        };
        [
            self.directory.join(&self.file).display().to_string(),
            said(&|claims| claims.subject.to_string()),
            said(&|claims| claims.serial.clone()),
            said(&|claims| super::written(claims.not_before)),
            said(&|claims| super::written(claims.not_after)),
            said(&|claims| left(claims.not_after.saturating_sub(now))),
            key.to_owned(),
        ]
    }
}

/// The certificates for people, and below what is wrong.
fn text(output: &Output, shown: &[Shown], now: u64) -> String {
    let header = ["FILE", "ID", "SERIAL", "FROM", "UNTIL", "LEFT", "KEY"];
    let mut text = table(header, shown.iter().map(|one| one.row(now)));
    for one in shown {
        let file = one.directory.join(&one.file);
        let problems = one
            .problems
            .iter()
            .map(|what| (Colour::Red, "problem", what));
        let warnings = one
            .warnings
            .iter()
            .map(|what| (Colour::Yellow, "warning", what));
        for (colour, word, what) in problems.chain(warnings) {
            let word = output.paint(colour, word);
            text.push_str(&format!("{word}: {}: {what}\n", file.display()));
        }
    }
    text
}

/// A time as people say it.
fn left(seconds: u64) -> String {
    match seconds {
        0 => "none".to_owned(),
        1..HOUR_S => format!("{} min", seconds / 60),
        HOUR_S..DAY_S => format!("{} h", seconds / HOUR_S),
        _ => format!("{} d", seconds / DAY_S),
    }
}
