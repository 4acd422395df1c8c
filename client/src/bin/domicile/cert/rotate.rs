//! `domicile cert rotate`: another authority in the place of a region's.
//!
//! Three steps, so that at each moment whoever has the bundle of the step before takes
//! every certificate that is in use:
//!
//! ```text
//!            bundle        ca.*    next/   previous/
//! at rest    old           old
//! --begin    old and new   old     new
//! --switch   old and new   new             old
//! --finish   new           new
//! ```
//!
//! Which step was done last is read from what is there. A step that was cut off is done
//! again from its beginning, in which what was done stays done; so each is one change
//! after the other, the one that counts last.

use std::path::PathBuf;
use std::time::Duration;

use domicile_proto::identity::mint::Authority;
use serde_json::json;

use super::authority::{Directory, blocks};
use super::disk::{self, Disk, PUBLIC, SECRET};
use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Puts another authority in the place of a region's, in three steps.
///
/// --begin makes it, and adds its root to the bundle; the old one goes on making
/// certificates. --switch lets the new one make them. --finish takes the old root out of
/// the bundle and wipes its key. Each step says what to do before the next one, and may
/// be run again where it was cut off.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("step").required(true).args(["begin", "switch", "finish"])))]
pub(crate) struct Arguments {
    /// The directory of the region's authority.
    #[arg(long, value_name = "DIRECTORY")]
    ca: PathBuf,

    /// Makes the new authority beside the old one.
    #[arg(long)]
    begin: bool,

    /// Lets the new authority make certificates.
    #[arg(long)]
    switch: bool,

    /// Leaves the old authority.
    #[arg(long)]
    finish: bool,

    /// How long the new authority is valid, as a number with `m`, `h` or `d`; with
    /// --begin.
    #[arg(long, value_name = "DURATION", default_value = "1825d", value_parser = super::validity)]
    valid: Duration,

    /// Says what would be done, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The new authority is made.
    Begin,
    /// It makes certificates.
    Switch,
    /// The old one is left.
    Finish,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none.
    AtRest,
    /// The new authority is there.
    Begun,
    /// The switch was cut off.
    Switching,
    /// The new authority makes certificates.
    Switched,
}

impl State {
    fn of(directory: &Directory) -> Self {
        let next = directory.next().path().is_dir();
        let previous = directory.previous().path().is_dir();
        match (next, previous) {
            (false, false) => State::AtRest,
            (true, false) => State::Begun,
            (true, true) => State::Switching,
            (false, true) => State::Switched,
        }
    }
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    super::dry_run_said(context, arguments.dry_run);
    let step = match (arguments.begin, arguments.switch) {
        (true, _) => Step::Begin,
        (_, true) => Step::Switch,
        _ => Step::Finish,
    };
    let directory = Directory::new(&arguments.ca);
    let disk = Disk::new(arguments.dry_run);
    let done = rotate(&disk, &directory, step, super::now(), arguments.valid)?;
    let (name, next) = (step.name(), step.next(&directory, &done.bundle));
    let json = json!({
        "step": name,
        "unchanged": done.is_unchanged,
        "bundle": done.bundle,
        "next": next,
        "dry_run": arguments.dry_run,
    });
    let bundle = done.bundle.display().to_string();
    let text = || table(["STEP", "BUNDLE"], [[name.to_owned(), bundle.clone()]]);
    context.output.document(&json, text, name.as_bytes())?;
    if done.is_unchanged {
        context
            .output
            .message("it was done before; nothing was changed");
    }
    context.output.message(&format!("next: {next}"));
    Ok(())
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Begin => "begin",
            Step::Switch => "switch",
            Step::Finish => "finish",
        }
    }

    /// What to do then.
    fn next(self, directory: &Directory, bundle: &std::path::Path) -> String {
        let (bundle, directory) = (bundle.display(), directory.path().display());
        match self {
            Step::Begin => format!(
                "distribute {bundle} to every node and client of every region (whoever runs the \
                 others takes it with `domicile cert trust`), and see with `domicile cert \
                 status` that all have two roots; then run `domicile cert rotate --ca \
                 {directory} --switch`"
            ),
            Step::Switch => format!(
                "renew the certificate of every node and client of this region; when none that \
                 the old authority made is in use any more, run `domicile cert rotate --ca \
                 {directory} --finish`"
            ),
            Step::Finish => format!(
                "distribute {bundle} to every node and client of every region, so that nobody \
                 takes the old root any more"
            ),
        }
    }
}

/// What came of a step.
#[derive(Debug)]
pub(super) struct Done {
    /// Whether it was done before.
    pub(super) is_unchanged: bool,
    /// The bundle of the region.
    pub(super) bundle: PathBuf,
}

/// Does a step, or what is left of it.
pub(super) fn rotate(
    disk: &Disk,
    directory: &Directory,
    step: Step,
    now: u64,
    valid: Duration,
) -> Result<Done, Failure> {
    // The key may be of the other one where a switch was cut off; both are of one region.
    let bundle = directory.bundle(&directory.region()?);
    let early = |what: &str| Err(Failure::usage(what.to_owned()));
    let is_unchanged = match (step, State::of(directory)) {
        (Step::Begin, State::AtRest | State::Begun) => begin(disk, directory, now, valid)?,
        (Step::Begin, _) => {
            return early("a rotation is under way: --switch and --finish it first");
        }
        (Step::Switch, State::AtRest) => {
            return early("there is nothing to switch to: --begin first");
        }
        (Step::Switch, State::Begun | State::Switching) => switch(disk, directory)?,
        (Step::Switch, State::Switched) => true,
        (Step::Finish, State::AtRest) => true,
        (Step::Finish, State::Begun) => {
            return early("the old authority is in use: --switch first");
        }
        (Step::Finish, State::Switching) => {
            return early("the switch was cut off: run --switch again first");
        }
        (Step::Finish, State::Switched) => finish(disk, directory)?,
    };
    Ok(Done {
        is_unchanged,
        bundle,
    })
}

/// Makes the new authority, then adds its root to the bundle. Answers whether both were
/// done.
fn begin(disk: &Disk, directory: &Directory, now: u64, valid: Duration) -> Result<bool, Failure> {
    let old = directory.load()?;
    let next = directory.next();
    let new = match next.path().is_dir() {
        true => next.load()?,
        false => make(disk, directory, &old, now, valid)?,
    };
    let path = directory.bundle(old.region());
    let bundle = text(disk::read(&path)?)?;
    let roots = blocks(&bundle);
    let [old_root, new_root] = [&old, &new].map(|of| first(of.certificate()));
    if roots.contains(&new_root) && roots.contains(&old_root) {
        return Ok(true);
    }
    let mut roots: Vec<_> = roots.into_iter().filter(|root| *root != new_root).collect();
    if !roots.contains(&old_root) {
        roots.push(old_root);
    }
    roots.push(new_root);
    disk.replace(&path, PUBLIC, joined(&roots).as_bytes())?;
    Ok(false)
}

/// Makes an authority of the same region, in one change.
fn make(
    disk: &Disk,
    directory: &Directory,
    old: &Authority,
    now: u64,
    valid: Duration,
) -> Result<Authority, Failure> {
    let new = Authority::new(old.region(), old.cluster(), now, valid.as_secs())
        .map_err(|error| Failure::local(error.to_string()))?;
    let made = Directory::new(directory.path().join(".next"));
    fill(
        disk,
        &made,
        new.certificate().as_bytes(),
        new.key().as_bytes(),
    )?;
    disk.rename(made.path(), directory.next().path())?;
    Ok(new)
}

/// Makes a directory with an authority in it, or again if that was cut off.
fn fill(disk: &Disk, made: &Directory, certificate: &[u8], key: &[u8]) -> Result<(), Failure> {
    disk.private_directory(made.path())?;
    disk.wipe(&made.key())?;
    disk.remove(&made.certificate())?;
    disk.create(&made.key(), SECRET, key)?;
    disk.create(&made.certificate(), PUBLIC, certificate)
}

/// Keeps the old authority, then puts the new one in its place.
fn switch(disk: &Disk, directory: &Directory) -> Result<bool, Failure> {
    let (next, previous) = (directory.next(), directory.previous());
    if !previous.path().is_dir() {
        let (old, new) = (directory.load()?, next.load()?);
        let bundle = text(disk::read(&directory.bundle(old.region()))?)?;
        if !blocks(&bundle).contains(&first(new.certificate())) {
            return Err(Failure::usage(
                "the bundle lacks the new root: --begin was cut off; run it again first",
            ));
        }
        let kept = Directory::new(directory.path().join(".previous"));
        fill(
            disk,
            &kept,
            old.certificate().as_bytes(),
            old.key().as_bytes(),
        )?;
        disk.rename(kept.path(), previous.path())?;
    }
    // From here on the rest can only be done. Until then the two do not fit together, and
    // nothing is made with them.
    for (from, to) in [
        (next.key(), directory.key()),
        (next.certificate(), directory.certificate()),
    ] {
        if from.symlink_metadata().is_ok() {
            disk.rename(&from, &to)?;
        }
    }
    disk.remove_directory(next.path())?;
    Ok(false)
}

/// Takes the old root out of the bundle, then wipes the old key.
fn finish(disk: &Disk, directory: &Directory) -> Result<bool, Failure> {
    let previous = directory.previous();
    let current = directory.load()?;
    if let Some(old) = disk::read(&previous.certificate())? {
        let old = text(Some(old))?;
        let path = directory.bundle(current.region());
        let bundle = text(disk::read(&path)?)?;
        let roots = blocks(&bundle);
        let left: Vec<_> = roots
            .iter()
            .copied()
            .filter(|root| *root != first(&old))
            .collect();
        if !left.contains(&first(current.certificate())) {
            return Err(Failure::local(format!(
                "{} lacks the root of the authority in use; add ca.crt to it",
                path.display()
            )));
        }
        if left.len() < roots.len() {
            disk.replace(&path, PUBLIC, joined(&left).as_bytes())?;
        }
    }
    disk.wipe(&previous.key())?;
    disk.remove(&previous.certificate())?;
    disk.remove_directory(previous.path())?;
    Ok(false)
}

/// The first certificate in PEM.
fn first(pem: &str) -> &str {
    blocks(pem).first().copied().unwrap_or_default()
}

fn joined(roots: &[&str]) -> String {
    roots.iter().map(|root| format!("{root}\n")).collect()
}

fn text(bytes: Option<Vec<u8>>) -> Result<String, Failure> {
    let text = String::from_utf8(bytes.unwrap_or_default());
    let text = text.map_err(|_| Failure::local("a bundle or a certificate is no PEM"))?;
    // As the library writes it, wherever the file was edited.
    Ok(text.replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests;
