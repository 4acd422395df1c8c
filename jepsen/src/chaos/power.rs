//! Disks that lose power: ext4 in a file in memory, cut off with everything
//! that was not synced.
//!
//! `shutdown` of a mounted file system drops what no fsync has made durable, as
//! a machine without power does. But it does not stop its users as a power cut
//! does, and ext4 reports a sync that is under way at that moment as done
//! although it is lost: a process that goes on tells others so. Seen in a
//! quarter of all cuts. So the users stand still before their disk is cut off.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The size of a disk: room for the logs of a short run.
const DISK_BYTES: u64 = 1 << 30;

/// The file that takes the room of a full disk.
const FILLER: &str = "filler";

/// How often it is made larger at most, where others take the room it asks for.
const FILL_TRIES: u32 = 20;

/// The folder of the files that take its inodes.
const FILES: &str = "filling-files";

/// How long a process may take to stand still: a call to a disk ends first.
const STOP_WAIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(1);

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

/// Stops processes and waits until none of their threads runs or is inside a
/// call to a disk. A process that has ended stands still, too.
fn stop(pids: &[u32]) -> Result<()> {
    for pid in pids {
        // It may have ended; the states below tell.
        drop(
            Command::new("kill")
                .args(["-STOP", &pid.to_string()])
                .output(),
        );
    }
    let mut waited = Duration::ZERO;
    while !pids.iter().all(|pid| stands_still(*pid)) {
        ensure!(waited < STOP_WAIT, "a process does not stand still");
        std::thread::sleep(STEP);
        waited += STEP;
    }
    Ok(())
}

fn stands_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    threads.flatten().all(|thread| {
        // `PID (NAME) STATE ...`; the name may hold anything.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        matches!(state, None | Some('T' | 't' | 'Z' | 'X'))
    })
}

impl Disk {
    /// Makes and mounts a disk at `mount`. An error says what this machine
    /// lacks: root, loop devices, or the programs.
    pub fn new(name: &str, mount: &Path) -> Result<Disk> {
        Disk::sized(name, mount, DISK_BYTES, &[])
    }

    /// The same of another size, with options of `mkfs.ext4` besides.
    pub fn sized(name: &str, mount: &Path, bytes: u64, options: &[&str]) -> Result<Disk> {
        let image = Path::new(MEMORY).join(format!("{name}-{}.img", std::process::id()));
        std::fs::create_dir_all(mount)?;
        let file = std::fs::File::create(&image).context("no file in memory")?;
        file.set_len(bytes)?;
        let mut disk = Disk {
            image,
            mount: mount.to_owned(),
            mounted: false,
        };
        let path = disk.image.to_string_lossy().into_owned();
        // Without what is kept for root, whom the nodes run as: full is full.
        let whole = ["-q", "-F", "-m", "0"];
        run("mkfs.ext4", &[&whole, options, &[&*path]].concat())?;
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

    /// Stops the processes that use the disks, then cuts all disks off at once:
    /// nothing that is not on them now ever gets there. The processes stand
    /// still afterwards.
    pub fn cut<'a>(disks: impl IntoIterator<Item = &'a Disk>, users: &[u32]) -> Result<()> {
        stop(users)?;
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

    /// Takes all room on it but `left` bytes. What is written beside it may take
    /// some of it first, so that less is asked for again.
    pub fn fill(&self, left: u64) -> Result<()> {
        let path = self.mount.join(FILLER);
        let mut refused = Ok(());
        for _ in 0..FILL_TRIES {
            let taken = self.free()?.0.saturating_sub(left);
            if taken == 0 {
                return Ok(());
            }
            let held = std::fs::metadata(&path).map_or(0, |filler| filler.len());
            let bytes = (held + taken).to_string();
            refused = run("fallocate", &["-l", &bytes, &path.to_string_lossy()]);
        }
        refused
    }

    /// The free bytes and inodes for users.
    pub fn free(&self) -> Result<(u64, u64)> {
        let column = |name: &str| -> Result<u64> {
            let output = Command::new("df")
                .args([&format!("--output={name}"), "-B1"])
                .arg(&self.mount)
                .output()
                .context("df does not run")?;
            let said = String::from_utf8_lossy(&output.stdout);
            Ok(said.split_whitespace().last().unwrap_or("0").parse()?)
        };
        Ok((column("avail")?, column("iavail")?))
    }

    /// Takes all inodes on it but `left`.
    pub fn fill_inodes(&self, left: u64) -> Result<()> {
        let folder = self.mount.join(FILES);
        std::fs::create_dir_all(&folder)?;
        let (_, free) = self.free()?;
        let begin = std::fs::read_dir(&folder)?.count();
        for number in 0..free.saturating_sub(left) as usize {
            match std::fs::File::create(folder.join((begin + number).to_string())) {
                // What is made beside it took the last ones.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                made => drop(made?),
            }
        }
        Ok(())
    }

    /// Gives the inodes back.
    pub fn drain_inodes(&self) -> Result<()> {
        std::fs::remove_dir_all(self.mount.join(FILES)).context("the inodes are not free")
    }

    /// Lets nothing reach it, or go on: what is written waits.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let how = if frozen { "-f" } else { "-u" };
        run("fsfreeze", &[how, &self.mount.to_string_lossy()])
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// Appends and syncs for ever, and says in another file how much was synced.
    const WRITER: &str = r#"
        open(my $log, ">>", $ARGV[0]) or die;
        open(my $said, ">", $ARGV[1]) or die;
        my $synced = 0;
        while (1) {
            syswrite($log, "x" x 3000) == 3000 or sleep;
            $log->sync or sleep;
            $synced += 3000;
            sysseek($said, 0, 0);
            syswrite($said, sprintf("%12d", $synced));
        }"#;

    #[test]
    fn what_a_process_was_told_is_synced_survives_a_power_cut() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().join("disk");
        let mut disk = match Disk::new("domicile-power-test", &mount) {
            Ok(disk) => disk,
            Err(lacking) => {
                crate::cluster::incomplete(format_args!(
                    "no disk that can lose power: {lacking:#}"
                ));
                return;
            }
        };
        let (log, said) = (mount.join("log"), folder.path().join("said"));
        for round in 0..20 {
            let mut writer = Command::new("perl")
                .args(["-MIO::Handle", "-e", WRITER])
                .args([&log, &said])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let synced = || -> u64 {
                let said = std::fs::read_to_string(&said).unwrap_or_default();
                said.trim().parse().unwrap_or(0)
            };
            while synced() == 0 {
                std::thread::sleep(STEP);
            }
            std::thread::sleep(Duration::from_millis(20 + round));
            Disk::cut([&disk], &[writer.id()]).unwrap();
            let synced = synced();
            writer.kill().unwrap();
            writer.wait().unwrap();
            disk.unmount().unwrap();
            disk.mount().unwrap();
            let kept = std::fs::metadata(&log).unwrap().len();
            assert!(kept >= synced, "round {round}: {kept} of {synced} bytes");
            std::fs::remove_file(&log).unwrap();
            std::fs::remove_file(folder.path().join("said")).unwrap();
            disk.sync().unwrap();
        }
    }

    #[test]
    fn a_disk_is_filled_while_something_else_takes_its_room() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().join("disk");
        let disk = match Disk::new("domicile-fill-test", &mount) {
            Ok(disk) => disk,
            Err(lacking) => {
                crate::cluster::incomplete(format_args!("no disk to fill: {lacking:#}"));
                return;
            }
        };
        let mut beside = std::fs::File::create(mount.join("beside")).unwrap();
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(std::io::Write::write(&mut beside, &[1; 64 << 10]));
                }
            });
            let filled = disk.fill(0);
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            filled.unwrap();
        });
        assert_eq!(disk.free().unwrap().0, 0);
    }
}
