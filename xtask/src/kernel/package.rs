//! Kernels as Debian packages them: found, downloaded and unpacked without being installed.

use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where newer kernels for Debian 12 are, for versions that the machine's own sources do not have.
const BACKPORTS: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                         http://deb.debian.org/debian bookworm-backports main\n";

/// An unpacked kernel.
pub struct Kernel {
    /// Its package.
    pub package: String,
    /// What `uname -r` says in it.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// Finds a version (`6.1`) or a package in the cache or at Debian.
    ///
    /// # Errors
    /// If there is none, or it cannot be downloaded.
    pub fn get(cache: &Path, wanted: &str) -> Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("make {}", cache.display()))?;
        let own = Apt { options: Vec::new() };
        if wanted.starts_with("linux-image-") {
            return Self::fetched(cache, wanted, &own);
        }
        let is_version = wanted.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        ensure!(is_version && wanted.contains('.'), "{wanted} is neither a version like 6.1 nor a package");
        if let Some(package) = own.newest(wanted)? {
            return Self::fetched(cache, &package, &own);
        }
        if let Some(package) = newest(wanted, &cached(cache)) {
            return Self::opened(cache, &package);
        }
        own.run(&["update", "-qq"])?;
        if let Some(package) = own.newest(wanted)? {
            return Self::fetched(cache, &package, &own);
        }
        eprintln!("looking for a kernel {wanted} in Debian's backports");
        let backports = Apt::backports(cache)?;
        backports.run(&["update", "-qq"])?;
        match backports.newest(wanted)? {
            Some(package) => Self::fetched(cache, &package, &backports),
            None => {
                bail!("neither this machine's sources nor Debian's backports have a cloud kernel {wanted}")
            }
        }
    }

    fn fetched(cache: &Path, package: &str, apt: &Apt) -> Result<Self> {
        if let Ok(known) = Self::opened(cache, package) {
            return Ok(known);
        }
        eprintln!("downloading {package}");
        // Beside the cache until it is whole.
        let part = cache.join(format!("{package}.part"));
        drop(fs::remove_dir_all(&part));
        fs::create_dir_all(&part)?;
        if apt.download(&part, package).is_err() {
            // The list may be older than the archive.
            apt.run(&["update", "-qq"])?;
            apt.download(&part, package)?;
        }
        let deb =
            find(&part, |n| n.ends_with(".deb")).with_context(|| format!("{package} was not downloaded"))?;
        let unpacked = Command::new("dpkg").arg("-x").arg(&deb).arg(&part).output().context("run dpkg")?;
        ensure!(unpacked.status.success(), "dpkg -x: {}", String::from_utf8_lossy(&unpacked.stderr).trim());
        fs::remove_file(&deb)?;
        let whole = cache.join(package);
        drop(fs::remove_dir_all(&whole));
        fs::rename(&part, &whole).with_context(|| format!("move to {}", whole.display()))?;
        Self::opened(cache, package)
    }

    fn opened(cache: &Path, package: &str) -> Result<Self> {
        let folder = cache.join(package);
        let modules = [folder.join("lib/modules"), folder.join("usr/lib/modules")];
        let of = modules.iter().find_map(|m| find(m, |_| true));
        let release = of.and_then(|m| Some(m.file_name()?.to_string_lossy().into_owned()));
        let release = release.with_context(|| format!("{package} is not unpacked"))?;
        Ok(Self { package: package.to_owned(), release, folder })
    }

    /// The image that a boot loader starts.
    ///
    /// # Errors
    /// If the package has none.
    pub fn image(&self) -> Result<PathBuf> {
        let image = find(&self.folder.join("boot"), |n| n.starts_with("vmlinuz"));
        image.with_context(|| format!("{} has no /boot/vmlinuz", self.package))
    }

    /// These modules with all that they need, in the order of loading: name and content. What the kernel has built in
    /// is no module, and is left out.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        files(&self.folder, &mut all)?;
        let mut order = Vec::new();
        for name in wanted {
            collect(name, &all, &mut order)?;
        }
        Ok(order)
    }
}

fn collect(name: &str, all: &[PathBuf], order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let is = |path: &&PathBuf| {
        path.file_name().is_some_and(|n| module_name(&n.to_string_lossy()) == Some(name.to_owned()))
    };
    let Some(path) = all.iter().find(is) else { return Ok(()) };
    let content = if path.extension().is_some_and(|e| e == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("run xz")?;
        ensure!(output.status.success(), "xz cannot unpack {}", path.display());
        output.stdout
    } else {
        fs::read(path).with_context(|| format!("read {}", path.display()))?
    };
    for needed in dependencies(&content) {
        collect(&needed, all, order)?;
    }
    order.push((name.to_owned(), content));
    Ok(())
}

/// `vxlan` for `vxlan.ko` and `vxlan.ko.xz`; nothing for what is no module.
fn module_name(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

/// What a module says it needs, in the section that `modinfo` shows.
fn dependencies(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|w| w == MARK) else { return Vec::new() };
    let rest = module.get(at + MARK.len()..).unwrap_or_default();
    let text = rest.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

fn files(folder: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files(&entry.path(), all)?;
        } else {
            all.push(entry.path());
        }
    }
    Ok(())
}

fn find(folder: &Path, is: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|e| e.ok());
    entries.map(|e| e.path()).find(|p| p.file_name().is_some_and(|n| is(&n.to_string_lossy())))
}

fn cached(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().filter_map(|e| e.ok());
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// The newest of the packages that hold a cloud kernel of a version.
fn newest(version: &str, packages: &[String]) -> Option<String> {
    let begin = format!("linux-image-{version}.");
    let fits = packages.iter().filter(|p| p.starts_with(&begin) && p.ends_with("-cloud-amd64"));
    let numbers = |p: &&String| -> Vec<u32> {
        p.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    fits.max_by_key(numbers).cloned()
}

/// apt with its own or with other sources.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn backports(cache: &Path) -> Result<Self> {
        let (list, lists) = (cache.join("backports.list"), cache.join("lists"));
        fs::create_dir_all(lists.join("partial"))?;
        fs::write(&list, BACKPORTS).with_context(|| format!("write {}", list.display()))?;
        let settings = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // Downloads go to a folder of ours.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options: settings.into_iter().flat_map(|s| ["-o".to_owned(), s]).collect() })
    }

    fn newest(&self, version: &str) -> Result<Option<String>> {
        let escaped = version.replace('.', "\\.");
        let names = format!("^linux-image-{escaped}\\..*-cloud-amd64$");
        let mut search = Command::new("apt-cache");
        search.args(&self.options).args(["search", "--names-only", &names]);
        let output = search.output().context("run apt-cache (this needs Debian or a relative of it)")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let packages: Vec<_> = text.lines().filter_map(|l| Some(l.split_once(' ')?.0.to_owned())).collect();
        Ok(newest(version, &packages))
    }

    fn download(&self, folder: &Path, package: &str) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(&self.options).args(["-o", "APT::Sandbox::User=root", "-qq", "download", package]);
        done(command.current_dir(folder), &format!("apt-get download {package}"))
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        done(command.args(&self.options).args(arguments), &format!("apt-get {}", arguments.join(" ")))
    }
}

fn done(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("run {what}"))?;
    ensure!(output.status.success(), "{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_is_chosen_by_number() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.12.5+bpo-cloud-amd64",
            "linux-image-6.12.30+bpo-cloud-amd64",
            "linux-image-6.12.31+bpo-cloud-amd64-unsigned",
        ]
        .map(str::to_owned);
        assert_eq!(newest("6.1", &names).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12", &names).as_deref(), Some("linux-image-6.12.30+bpo-cloud-amd64"));
        assert_eq!(newest("5.10", &names), None);
    }

    #[test]
    fn modules_name_what_they_need() {
        assert_eq!(dependencies(b"x\0depends=udp_tunnel,ip6-udp\0y"), ["udp_tunnel", "ip6_udp"]);
        assert_eq!(dependencies(b"x\0depends=\0y"), Vec::<String>::new());
        assert_eq!(dependencies(b"nothing"), Vec::<String>::new());
        assert_eq!(module_name("sch-ingress.ko.xz").as_deref(), Some("sch_ingress"));
        assert_eq!(module_name("modules.dep"), None);
    }
}
