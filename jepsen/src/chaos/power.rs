//! Disks that lose power: ext4 in a file in memory, cut off with everything
//! that was not synced.
//!
//! `shutdown` of a mounted file system drops exactly what no fsync has made
//! durable, as a machine without power does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The size of a disk: room for the logs of a short run.
const DISK_BYTES: u64 = 1 << 30;

/// The file that takes the room of a full disk.
const FILLER: &str = "filler";

/// Where the files of the disks lie: memory, so that a sync costs little.
const MEMORY: &str = "/dev/shm";

/// A file system that can lose power. Unmounted and removed when dropped.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} does not run"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl Disk {
    /// Makes and mounts a disk at `mount`. An error says what this machine
    /// lacks: root, loop devices, or the programs.
    pub fn new(name: &str, mount: &Path) -> Result<Disk> {
        let image = Path::new(MEMORY).join(format!("{name}-{}.img", std::process::id()));
        std::fs::create_dir_all(mount)?;
        let file = std::fs::File::create(&image).context("no file in memory")?;
        file.set_len(DISK_BYTES)?;
        let mut disk = Disk {
            image,
            mount: mount.to_owned(),
            mounted: false,
        };
        run("mkfs.ext4", &["-q", "-F", &disk.image.to_string_lossy()])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts it, after the journal was replayed as after any power loss.
    pub fn mount(&mut self) -> Result<()> {
        run(
            "mount",
            &[
                // The journal is written when someone asks for it, not by time:
                // what nobody synced is lost for certain.
                "-o",
                "loop,commit=300",
                &self.image.to_string_lossy(),
                &self.mount.to_string_lossy(),
            ],
        )?;
        self.mounted = true;
        Ok(())
    }

    /// Makes everything on it durable, whatever its users think of fsync.
    pub fn sync(&self) -> Result<()> {
        run("sync", &["-f", &self.mount.to_string_lossy()])
    }

    /// Cuts disks off at once: nothing that is not on them now ever gets there.
    pub fn cut<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> Result<()> {
        let cutting = disks.into_iter().map(|disk| {
            Command::new("xfs_io")
                .args(["-x", "-c", "shutdown"])
                .arg(&disk.mount)
                .spawn()
                .context("xfs_io does not run")
        });
        let cutting: Vec<_> = cutting.collect();
        for one in cutting {
            let status = one?.wait()?;
            ensure!(status.success(), "a disk was not cut off");
        }
        Ok(())
    }

    /// The file that is the disk.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount
    }

    /// Takes all room on it but `left` bytes.
    pub fn fill(&self, left: u64) -> Result<()> {
        let output = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(&self.mount)
            .output()
            .context("df does not run")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let free: u64 = said.split_whitespace().last().unwrap_or("0").parse()?;
        let Some(taken) = free.checked_sub(left).filter(|taken| *taken > 0) else {
            return Ok(());
        };
        let path = self.mount.join(FILLER).to_string_lossy().into_owned();
        run("fallocate", &["-l", &taken.to_string(), &path])
    }

    /// Gives the room back.
    pub fn drain(&self) {
        // It may have gone with what was not synced.
        drop(std::fs::remove_file(self.mount.join(FILLER)));
    }

    /// Unmounts it. Nothing may use it any more.
    pub fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            run("umount", &[&self.mount.to_string_lossy()])?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("jepsen: {error:#}");
        }
        drop(std::fs::remove_file(&self.image));
    }
}
