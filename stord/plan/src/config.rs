//! Which pools does a host have, who may use them, and where may images come from?

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use steppe_config::{Place, Problems, Table, each, quoted};
pub use steppe_config::{Problem, Settings};

use crate::name::PoolName;
use crate::size::Size;

/// Where stord listens unless the operator says otherwise.
pub const SOCKET: &str = "/run/stord/stord.sock";

/// What holds where no file names a pool: a directory of this host.
const DEFAULT_POOL: (&str, &str) = ("local", "/var/lib/stord/local");
/// Nomad's namespace where a job names none.
const DEFAULT_TENANT: &str = "default";
const IMAGES: &str = "/var/lib/stord/images";
const IMAGE_SIZE_MAX: Size = Size::gib(100);

const TENANT_NAME_MAX: usize = 128;
const PATH_MAX: usize = 1024;

/// The storage of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its pools.
    pub pools: BTreeMap<PoolName, Pool>,
    /// What each tenant may use, by Nomad's namespace. Others may use nothing.
    pub tenants: BTreeMap<String, Tenant>,
    /// Where imported images are kept.
    pub images: PathBuf,
    /// Directories whose files may be imported. From elsewhere nothing is read.
    pub image_paths: Vec<PathBuf>,
    /// The largest disk that an image may have.
    pub image_size_max: Size,
}

/// Where volumes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pool {
    /// A directory of this host.
    Dir {
        /// Which.
        path: PathBuf,
    },
}

impl Pool {
    /// The kind's word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dir { .. } => "dir",
        }
    }
}

/// What a tenant may use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tenant {
    /// Pools in which it may have volumes.
    pub pools: BTreeSet<PoolName>,
}

impl Config {
    /// What several texts say together: the file first, then its drop-ins in order, each with its place, such as its path. Later
    /// ones override keys of `[daemon]` and `[images]`; a pool and a tenant are said once.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them, in their order.
    pub fn parse(files: &[(String, String)]) -> Result<(Self, Settings), Vec<Problem>> {
        let mut problems = Problems::default();
        let (mut config, mut settings) = Self::embedded();
        let mut pools: BTreeMap<PoolName, (Pool, Place)> = BTreeMap::new();
        let mut tenants: BTreeMap<String, (Vec<(String, Place)>, Place)> = BTreeMap::new();
        each(files, &mut problems, |top, problems| {
            top.refuse_unknown("keys", &["daemon", "images", "pool", "tenant"], problems);
            if let Some(daemon) = top.table("daemon", problems) {
                daemon.refuse_unknown("keys of [daemon]", &Settings::KEYS, problems);
                settings.read(&daemon, problems);
            }
            if let Some(images) = top.table("images", problems) {
                config.read_images(&images, problems);
            }
            let before = |at: &Place| {
                format!(
                    "{}:{}",
                    files.get(at.file).map_or("", |(name, _)| name.as_str()),
                    at.line
                )
            };
            for (key, at, table) in tables(top, "pool", problems) {
                let Ok(name) = key.parse::<PoolName>().map_err(|error| {
                    problems.add(at, format!("pool {} can't be named so: {error}", quoted(key)));
                }) else {
                    continue;
                };
                if let Some((_, first)) = pools.get(&name) {
                    let first = before(first);
                    problems.add(
                        at,
                        format!("pool {name} is said a second time, first at {first}: leave one of them out"),
                    );
                } else if let Some(pool) = read_pool(&table, &name, problems) {
                    pools.insert(name, (pool, at));
                }
            }
            for (key, at, table) in tables(top, "tenant", problems) {
                table.refuse_unknown(&format!("keys of {}", table.path), &["pools"], problems);
                if key.is_empty() || key.len() > TENANT_NAME_MAX || key.chars().any(char::is_control) {
                    problems.add(
                        at,
                        format!(
                            "tenant {} can't be named so: give the name of a namespace of Nomad's",
                            quoted(key)
                        ),
                    );
                } else if let Some((_, first)) = tenants.get(key) {
                    let first = before(first);
                    problems.add(
                        at,
                        format!(
                            "tenant {key} is said a second time, first at {first}: leave one of them out"
                        ),
                    );
                } else {
                    let said = table.texts("pools", false, problems).unwrap_or_default();
                    tenants.insert(key.to_owned(), (said, at));
                }
            }
        });
        if !pools.is_empty() {
            config.pools = pools
                .iter()
                .map(|(name, (pool, _))| (name.clone(), pool.clone()))
                .collect();
            config.tenants.clear();
        }
        config.check_places(&pools, &mut problems);
        for (name, (said, _)) in tenants {
            let tenant = config.tenant(&name, &said, &mut problems);
            config.tenants.insert(name, tenant);
        }
        if problems.is_empty() {
            Ok((config, settings))
        } else {
            Err(problems.finish(files))
        }
    }

    /// What holds where there is no file: one directory, which the tenant `default` may use.
    #[must_use]
    pub fn embedded() -> (Self, Settings) {
        let (name, path) = DEFAULT_POOL;
        // Our own name is a good one.
        let pools: BTreeMap<PoolName, Pool> = name
            .parse()
            .map(|name| (name, Pool::Dir { path: path.into() }))
            .into_iter()
            .collect();
        let tenant = Tenant {
            pools: pools.keys().cloned().collect(),
        };
        let config = Self {
            pools,
            tenants: BTreeMap::from([(DEFAULT_TENANT.to_owned(), tenant)]),
            images: IMAGES.into(),
            image_paths: Vec::new(),
            image_size_max: IMAGE_SIZE_MAX,
        };
        (config, Settings::at(SOCKET))
    }

    fn read_images(&mut self, table: &Table<'_, '_>, problems: &mut Problems) {
        table.refuse_unknown("keys of [images]", &["path", "image_paths", "size_max"], problems);
        if let Some((path, at)) = table.text("path", problems)
            && let Some(path) = place("images.path", path, at, problems)
        {
            self.images = path;
        }
        if let Some((size, at)) = table.text("size_max", problems) {
            match size.parse() {
                Ok(size) => self.image_size_max = size,
                Err(error) => problems.add(at, format!("images.size_max is {}, which {error}", quoted(size))),
            }
        }
        if let Some(paths) = table.texts("image_paths", false, problems) {
            self.image_paths = paths
                .iter()
                .filter_map(|(path, at)| place("images.image_paths", path, *at, problems))
                .collect();
        }
    }

    /// Whether no two things are kept in one place: what is deleted in one would be gone in the other.
    fn check_places(&self, pools: &BTreeMap<PoolName, (Pool, Place)>, problems: &mut Problems) {
        let mut known: Vec<(String, &Path)> = vec![("the images".to_owned(), &self.images)];
        for (name, (pool, at)) in pools {
            let Pool::Dir { path } = pool;
            let within = |other: &Path| path.starts_with(other) || other.starts_with(path);
            if let Some((other, there)) = known.iter().find(|(_, there)| within(there)) {
                problems.add(
                    *at,
                    format!(
                        "pool.{name}.path is {}, and {other} are kept in {}; give each a place of its own",
                        path.display(),
                        there.display()
                    ),
                );
            }
            known.push((format!("the volumes of pool {name}"), path));
        }
    }

    fn tenant(&self, name: &str, said: &[(String, Place)], problems: &mut Problems) -> Tenant {
        let mut tenant = Tenant::default();
        for (pool, at) in said {
            match pool
                .parse::<PoolName>()
                .ok()
                .filter(|pool| self.pools.contains_key(pool))
            {
                Some(pool) => drop(tenant.pools.insert(pool)),
                None => {
                    let known: Vec<&str> = self.pools.keys().map(PoolName::as_str).collect();
                    problems.add(
                        *at,
                        format!(
                            "tenant.{name}.pools has {}, which is no pool; there are {}",
                            quoted(pool),
                            known.join(", ")
                        ),
                    );
                }
            }
        }
        tenant
    }
}

/// The tables beneath a table of tables.
fn tables<'t, 'i>(
    top: &Table<'t, 'i>,
    key: &str,
    problems: &mut Problems,
) -> Vec<(&'t str, Place, Table<'t, 'i>)> {
    let Some(all) = top.table(key, problems) else {
        return Vec::new();
    };
    all.keys()
        .filter_map(|(name, at)| Some((name, at, all.table(name, problems)?)))
        .collect()
}

fn read_pool(table: &Table<'_, '_>, name: &PoolName, problems: &mut Problems) -> Option<Pool> {
    let Some((kind, at)) = table.text("kind", problems) else {
        if table.place("kind").is_none() {
            problems.add(table.at, format!("pool {name} has no kind; give \"dir\""));
        }
        return None;
    };
    if kind != "dir" {
        problems.add(
            at,
            format!("{} is {}; give \"dir\"", table.key("kind"), quoted(kind)),
        );
        return None;
    }
    table.refuse_unknown("keys of a pool of kind dir", &["kind", "path"], problems);
    let Some((path, at)) = table.text("path", problems) else {
        if table.place("path").is_none() {
            problems.add(table.at, format!("pool {name} has no path; give its directory"));
        }
        return None;
    };
    let path = place(&table.key("path"), path, at, problems)?;
    Some(Pool::Dir { path })
}

/// A directory: absolute, and said without detours, so that two that are said differently are two.
fn place(key: &str, text: &str, at: Place, problems: &mut Problems) -> Option<PathBuf> {
    let path = Path::new(text);
    let straight = path.is_absolute()
        && path
            .components()
            .skip(1)
            .all(|part| matches!(part, Component::Normal(_)))
        && path.components().count() > 1
        && text.len() <= PATH_MAX
        && !text.contains('\0');
    if !straight {
        problems.add(
            at,
            format!(
                "{key} has {}; give the absolute path of a directory, without . and ..",
                quoted(text)
            ),
        );
    }
    straight.then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Config, Settings), Vec<String>> {
        let files = [("f".to_owned(), text.to_owned())];
        Config::parse(&files).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn without_a_file_there_is_one_directory() {
        let (config, settings) = parse("").expect("nothing is wrong");
        assert_eq!(
            (&config, &settings),
            (&Config::embedded().0, &Config::embedded().1)
        );
        let pool: PoolName = "local".parse().expect("a good name");
        assert_eq!(
            config.pools[&pool],
            Pool::Dir {
                path: "/var/lib/stord/local".into()
            }
        );
        assert!(config.tenants["default"].pools.contains(&pool));
        assert_eq!(settings.socket, SOCKET);
    }

    #[test]
    fn a_tenant_that_is_not_named_may_use_nothing() {
        let (config, settings) = parse(
            "[daemon]\nreaders = ['nobody']\n[images]\nimage_paths = ['/srv/images']\n[pool.ssd]\nkind = 'dir'\npath = '/ssd/'\n\
             [pool.hdd]\nkind = 'dir'\npath = '/hdd'\n[tenant.web]\npools = ['ssd']\n",
        )
        .expect("nothing is wrong");
        let names: Vec<&str> = config.pools.keys().map(PoolName::as_str).collect();
        assert_eq!(names, ["hdd", "ssd"]);
        assert_eq!(config.tenants.keys().collect::<Vec<_>>(), ["web"]);
        assert_eq!(config.tenants["web"].pools.len(), 1);
        assert_eq!(config.image_paths, [PathBuf::from("/srv/images")]);
        assert_eq!(settings.readers, ["nobody"]);
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let problems = parse(
            "[daemon]\nsocket = 'x'\nlink_group = 1\n[images]\nsize_max = '10GB'\npath = 'images'\nimage_paths = ['/a/../b', 7]\n[pool.Big]\nkind = 'dir'\n\
             path = '/big'\n[pool.a]\nkind = 'zfs'\n[pool.b]\nkind = 'dir'\n[pool.c]\npath = '/c'\n[pool.d]\nkind = 'dir'\npath = '/d'\n\
             size = 1\n[pool.e]\nkind = 'dir'\npath = '/d/e'\n[pool.f]\nkind = 'dir'\npath = '/'\n[tenant.t]\npools = ['d', 'z']\nquota = 1\n\
             [volume]\n",
        )
        .expect_err("it is all wrong");
        assert_eq!(
            problems,
            [
                "f:2: daemon.socket is \"x\"; give an absolute path of at most 107 bytes",
                "f:3: \"daemon.link_group\" is no key here; keys of [daemon] are socket, drivers, readers, metrics, log_level",
                "f:5: images.size_max is \"10GB\", which has the unit \"GB\": give one of KiB, MiB, GiB, TiB",
                "f:6: images.path has \"images\"; give the absolute path of a directory, without . and ..",
                "f:7: images.image_paths has \"/a/../b\"; give the absolute path of a directory, without . and ..",
                "f:7: images.image_paths is of type integer; give a list of texts in quotes",
                "f:8: pool \"Big\" can't be named so: give 1 to 32 characters of a-z, 0-9 and -, beginning with a letter or a digit",
                "f:12: pool.a.kind is \"zfs\"; give \"dir\"",
                "f:13: pool b has no path; give its directory",
                "f:15: pool c has no kind; give \"dir\"",
                "f:20: \"pool.d.size\" is no key here; keys of a pool of kind dir are kind, path",
                "f:21: pool.e.path is /d/e, and the volumes of pool d are kept in /d; give each a place of its own",
                "f:26: pool.f.path has \"/\"; give the absolute path of a directory, without . and ..",
                "f:28: tenant.t.pools has \"z\", which is no pool; there are d, e",
                "f:29: \"tenant.t.quota\" is no key here; keys of tenant.t are pools",
                "f:30: \"volume\" is no key here; keys are daemon, images, pool, tenant",
            ]
        );
    }

    #[test]
    fn one_is_said_once() {
        let files = [
            (
                "a".to_owned(),
                "[pool.x]\nkind = 'dir'\npath = '/x'\n[tenant.t]\npools = ['x']\n".to_owned(),
            ),
            (
                "b".to_owned(),
                "[pool.x]\nkind = 'dir'\npath = '/y'\n[tenant.t]\npools = ['x']\n".to_owned(),
            ),
            ("c".to_owned(), "[pool.x\n".to_owned()),
        ];
        let problems = Config::parse(&files).expect_err("it is said twice");
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said[0],
            "b:1: pool x is said a second time, first at a:1: leave one of them out"
        );
        assert_eq!(
            said[1],
            "b:4: tenant t is said a second time, first at a:4: leave one of them out"
        );
        assert!(said[2].starts_with("c:1: "), "{}", said[2]);
        assert_eq!(said.len(), 3);
    }
}
