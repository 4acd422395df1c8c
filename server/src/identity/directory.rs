//! Reading the directory of a node's certificate.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use domicile_proto::identity::Files;

use crate::error::{Error, Result};

/// The most bytes of a file that are read: some hundred certificates.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The bits of a mode by which everybody on the machine may read or write.
const OTHERS: u32 = 0o007;

/// Reads the directory, each file whole as it is now.
pub(super) fn read(directory: &Path) -> Result<Files> {
    let unread = |name: &str, error: io::Error| {
        let path = directory.join(name);
        Error::invalid(format!(
            "{} cannot be read; see `domicile cert node --help` for what belongs there",
            path.display()
        ))
        .caused_by(error)
    };
    Files::read(
        |name| read_file(&directory.join(name)).map_err(|error| unread(name, error)),
        |name| names(&directory.join(name)).map_err(|error| unread(name, error)),
    )
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = fs::File::open(path)?.take(FILE_BYTES_MAX + 1);
    file.read_to_end(&mut bytes)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let names: Vec<Option<String>> = names.collect::<io::Result<_>>()?;
    Ok(names.into_iter().flatten().collect())
}

/// Refuses a key that everybody on the machine may read.
pub fn check_mode(directory: &Path) -> Result<()> {
    let path = directory.join(Files::KEY);
    let mode = fs::metadata(&path).map_err(|error| {
        Error::invalid(format!("{} cannot be read", path.display())).caused_by(error)
    })?;
    let mode = mode.permissions().mode();
    if mode & OTHERS == 0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "every user of this machine may use the key {} (mode {:03o}); run `chmod o= {}`, or set \
         the mode of the secret that it comes from to 0440",
        path.display(),
        mode & 0o777,
        path.display()
    )))
}
