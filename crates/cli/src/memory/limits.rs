//! What a process may still allocate: what the machine has, what `ulimit` allows, what the container allows.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The least of all that the system tells; `None` where it tells nothing.
pub(super) fn available() -> Option<u64> {
    let machine = field(&read("/proc/meminfo"), "MemAvailable:");
    let groups = control_groups(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    [machine, of_the_process(), groups].into_iter().flatten().min()
}

/// What `RLIMIT_AS` and `RLIMIT_DATA` leave.
#[cfg(unix)]
fn of_the_process() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let status = read("/proc/self/status");
    let left = |resource, used| Some(getrlimit(resource).current?.saturating_sub(field(&status, used)?));
    [left(Resource::As, "VmSize:"), left(Resource::Data, "VmData:")].into_iter().flatten().min()
}

#[cfg(not(unix))]
fn of_the_process() -> Option<u64> {
    None
}

/// What the control groups of the process leave, those that hold its group among them. `text` is
/// /proc/self/cgroup, `mounted` where the hierarchies are.
fn control_groups(text: &str, mounted: &Path) -> Option<u64> {
    let groups = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let hierarchy = match controllers {
            "" => Hierarchy::two(mounted),
            names if names.split(',').any(|name| name == "memory") => Hierarchy::one(mounted),
            _ => return None,
        };
        hierarchy.left(path)
    });
    groups.min()
}

/// The files of one version of control groups.
struct Hierarchy {
    root: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// Of memory.stat: pages of files that nobody works with, which the kernel gives up first.
    inactive: &'static str,
}

impl Hierarchy {
    fn one(mounted: &Path) -> Self {
        let root = mounted.join("memory");
        let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        Self { root, limit, usage, inactive: "total_inactive_file" }
    }

    /// Alone, or beside the first version.
    fn two(mounted: &Path) -> Self {
        let beside = mounted.join("unified");
        let root = if beside.is_dir() { beside } else { mounted.to_path_buf() };
        Self { root, limit: "memory.max", usage: "memory.current", inactive: "inactive_file" }
    }

    /// The least that `path` and the groups around it leave. In a container the path may be one of the host's, and only
    /// the root is there.
    fn left(&self, path: &str) -> Option<u64> {
        let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
        let mut directory = self.root.clone();
        let mut least = self.left_in(&directory);
        for name in names {
            directory.push(name);
            least = least.into_iter().chain(self.left_in(&directory)).min();
        }
        least
    }

    fn left_in(&self, directory: &Path) -> Option<u64> {
        let number = |name| read(directory.join(name)).trim().parse::<u64>().ok();
        let (limit, usage) = (number(self.limit)?, number(self.usage)?);
        let stat = read(directory.join("memory.stat"));
        let inactive = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == self.inactive).then(|| bytes.trim().parse::<u64>().ok())?
        });
        Some(limit.saturating_sub(usage.saturating_sub(inactive.unwrap_or(0))))
    }
}

/// The text of a file; nothing if there is none.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A number of KiB, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(directory: &Path, files: [(&str, &str); 3]) {
        fs::create_dir_all(directory).unwrap();
        files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
    }

    fn two(directory: &Path, max: &str, current: &str) {
        let stat = "anon 5\ninactive_file 100\n";
        group(directory, [("memory.max", max), ("memory.current", current), ("memory.stat", stat)]);
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        two(&root.path().join("a"), "5000\n", "1100\n");
        two(&root.path().join("a/b"), "max\n", "600\n");
        two(&root.path().join("a/b/c"), "9000\n", "500\n");
        assert_eq!(control_groups("0::/a/b/c\n", root.path()), Some(4000));
        assert_eq!(control_groups("0::/elsewhere\n", root.path()), None);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_root() {
        let root = tempfile::tempdir().unwrap();
        two(root.path(), "3000\n", "50\n");
        assert_eq!(control_groups("0::/docker/of/the/host\n", root.path()), Some(3000));
    }

    #[test]
    fn the_first_version_is_known_too() {
        let root = tempfile::tempdir().unwrap();
        let stat = "inactive_file 1\ntotal_inactive_file 30\n";
        group(
            &root.path().join("memory/x"),
            [("memory.limit_in_bytes", "1000"), ("memory.usage_in_bytes", "230"), ("memory.stat", stat)],
        );
        let text = "9:name=systemd:/x\n4:cpu,memory:/x\n1:cpu:/x\n";
        assert_eq!(control_groups(text, root.path()), Some(800));
    }
}
