use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::{any, proptest};
use secrecy::ExposeSecret;

use super::{
    AuthMethod, ChannelBinding, Conninfo, ConninfoError, Environment, Host, HostName, PassfileError, RootCert, SslMode,
    TargetSessionAttrs,
};

fn user_named(name: &str) -> Environment {
    Environment { user: Some(name.to_owned()), ..Environment::default() }
}

fn parse(text: &str) -> Conninfo {
    Conninfo::parse(text, &user_named("os")).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fail(text: &str) -> String {
    Conninfo::parse(text, &user_named("os")).expect_err(text).to_string()
}

fn hosts(conninfo: &Conninfo) -> Vec<String> {
    conninfo.hosts().iter().map(ToString::to_string).collect()
}

fn password(conninfo: &Conninfo) -> Option<String> {
    let host = conninfo.hosts().first().unwrap();
    conninfo.password_for(host, "replication").unwrap().map(|password| password.expose_secret().to_owned())
}

#[test]
fn keywords_are_read_with_their_quotes_and_escapes() {
    let cases = [
        ("host=pg1 user=u", "pg1:5432", "u", None),
        ("host = pg1\tuser\n=\n'u'", "pg1:5432", "u", None),
        (r"host=pg1 user='a b' password='it\'s \\ ä'", "pg1:5432", "a b", Some(r"it's \ ä")),
        (r"host=pg1 user=a\ b password=x\'y", "pg1:5432", "a b", Some("x'y")),
        ("user=first user=last host=pg1", "pg1:5432", "last", None),
        ("host=pg1 user=''", "pg1:5432", "os", None),
        ("host=pg1 port=6000 password=a=b", "pg1:6000", "os", Some("a=b")),
    ];
    for (text, host, user, secret) in cases {
        let conninfo = parse(text);
        assert_eq!(hosts(&conninfo), [host], "{text}");
        assert_eq!(conninfo.user(), user, "{text}");
        assert_eq!(password(&conninfo).as_deref(), secret, "{text}");
    }
}

#[test]
fn uris_are_read_as_libpq_reads_them() {
    let cases = [
        ("postgresql://", "localhost:5432", "os", None, None),
        ("postgres://pg1", "pg1:5432", "os", None, None),
        ("postgresql://u:p%40%3A@pg1:6000/db", "pg1:6000", "u", Some("db"), Some("p@:")),
        ("postgresql://u@pg1,pg2:6001/db?target_session_attrs=primary", "pg1:5432 pg2:6001", "u", Some("db"), None),
        ("postgresql://[::1]:6000/?user=u", "[::1]:6000", "u", None, None),
        ("postgresql://u:p@w@pg1", "pg1:5432", "u", None, Some("p@w")),
        ("postgresql://%2Frun%2Fpg/db", "/run/pg:5432", "os", Some("db"), None),
        ("postgresql:///db?host=/run/pg&port=6002", "/run/pg:6002", "os", Some("db"), None),
        ("postgresql://pg1?ssl=true", "pg1:5432", "os", None, None),
    ];
    for (text, expected, user, dbname, secret) in cases {
        let conninfo = parse(text);
        assert_eq!(hosts(&conninfo).join(" "), expected, "{text}");
        assert_eq!((conninfo.user(), conninfo.dbname()), (user, dbname), "{text}");
        assert_eq!(password(&conninfo).as_deref(), secret, "{text}");
    }
    assert_eq!(parse("postgresql://pg1?ssl=true").ssl_mode(), SslMode::Require);
    assert_eq!(
        parse("postgres://a,b?target_session_attrs=read-write").target_session_attrs(),
        TargetSessionAttrs::ReadWrite
    );
}

#[test]
fn what_cannot_be_read_is_refused_without_showing_secrets() {
    let cases = [
        ("hots=pg1", "did you mean \"host\"?"),
        ("application_nam=x", "did you mean \"application_name\"?"),
        ("host=pg1 hunter2", "missing \"=\""),
        ("host='pg1", "unterminated"),
        ("port=0", "a port from 1 to 65535"),
        ("port=65536", "a port"),
        ("port=x", "a port"),
        ("host=a,b port=1,2,3", "3 ports for 2 hosts"),
        ("host=a,b hostaddr=::1", "2 hosts, but 1 hostaddr"),
        ("hostaddr=pg1", "an IP address"),
        ("sslmode=on", "one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=disable channel_binding=require", "needs TLS"),
        ("sslrootcert=system sslmode=require", "weaker"),
        ("sslnegotiation=direct", "too weak"),
        ("require_auth=scram", "one of"),
        ("require_auth=!md5,scram-sha-256", "either"),
        ("require_auth=gss", "a method that pgvault has"),
        ("gssencmode=require", "Kerberos"),
        ("load_balance_hosts=random", "in order"),
        ("ssl_max_protocol_version=TLSv1.1", "no TLS version is left"),
        ("connect_timeout=soon", "a number"),
        ("keepalives=yes", "0 or 1"),
        ("target_session_attrs=primary,standby", "one of any"),
        ("sslpassword=hunter2", "encrypted key files"),
        ("postgresql://u:hunter2@[::1", "IPv6"),
        ("postgresql://u:hunter2%@pg1", "hexadecimal"),
        ("postgresql://u:hunter2@pg1?nonsense", "no \"=\""),
        ("postgresql://u:hunter2@pg1?hots=x", "did you mean"),
        ("postgresql://pg1/%00", "%00"),
        ("postgresql://pg1/%ff", "UTF-8"),
        ("hunter2", "missing \"=\""),
        ("servicefile=/nowhere service=x", "cannot read /nowhere"),
        ("service=x", "no such service"),
    ];
    for (text, expected) in cases {
        let message = fail(text);
        assert!(message.contains(expected), "{text}: {message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn the_environment_fills_only_what_is_open() {
    let mut environment = Environment::from_variables([
        ("PGHOST", "env1,env2"),
        ("PGPORT", "6000"),
        ("PGUSER", "env"),
        ("PGPASSWORD", "hunter2"),
        ("PGSSLMODE", "require"),
        ("PGTARGETSESSIONATTRS", "primary"),
        ("PGCONNECT_TIMEOUT", "7"),
        ("PGCHANNELBINDING", "require"),
        ("PGDATABASE", ""),
    ]);
    environment.user = Some("os".to_owned());
    let conninfo = Conninfo::parse("host=pg1 channel_binding=disable", &environment).unwrap();
    assert_eq!(hosts(&conninfo), ["pg1:6000"]);
    assert_eq!((conninfo.user(), conninfo.dbname()), ("env", None));
    assert_eq!(conninfo.connect_timeout, Some(Duration::from_secs(7)));
    assert_eq!((conninfo.ssl_mode(), conninfo.channel_binding), (SslMode::Require, ChannelBinding::Disable));
    assert_eq!(hosts(&Conninfo::parse("", &environment).unwrap()), ["env1:6000", "env2:6000"]);

    let broken = Environment::from_variables([("PGSSLMODE", "yes"), ("PGUSER", "u")]);
    let message = Conninfo::parse("", &broken).unwrap_err().to_string();
    assert!(message.starts_with("PGSSLMODE: \"yes\" is not one of"), "{message}");
    assert!(matches!(Conninfo::parse("", &Environment::default()), Err(ConninfoError::Contradiction(_))));
}

#[test]
fn nothing_that_is_printed_shows_the_password() {
    for text in ["host=pg1 user=u password=hunter2", "postgresql://u:hunter2@pg1/db"] {
        let conninfo = parse(text);
        let shown = format!("{conninfo} {conninfo:?} {conninfo:#?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("password=***"), "{shown}");
    }
    let shown = parse("host=a,b port=1,2 user='a b' sslmode=require").to_string();
    assert_eq!(shown, "host=a,b port=1,2 user='a b' sslmode=require");
}

#[test]
fn hosts_addresses_and_ports_are_paired() {
    let conninfo = parse("host=a,b,/run/pg,@abstract hostaddr=,10.0.0.2,, port=1,,3,4 user=u");
    let expected = [
        Host { name: HostName::Tcp("a".to_owned()), address: None, port: 1 },
        Host { name: HostName::Tcp("b".to_owned()), address: Some([10, 0, 0, 2].into()), port: 5432 },
        Host { name: HostName::Unix(PathBuf::from("/run/pg")), address: None, port: 3 },
        Host { name: HostName::Unix(PathBuf::from("@abstract")), address: None, port: 4 },
    ];
    assert_eq!(conninfo.hosts(), expected);
    assert_eq!(hosts(&parse("hostaddr=10.0.0.1,10.0.0.2 port=6000")), ["10.0.0.1:6000", "10.0.0.2:6000"]);
    let with_socket = Environment { socket_directory: Some("/run/pg".into()), ..user_named("u") };
    assert_eq!(hosts(&Conninfo::parse("", &with_socket).unwrap()), ["/run/pg:5432"]);
}

#[test]
fn weak_ways_of_authentication_are_refused_unless_named() {
    let cases = [
        ("", AuthMethod::ScramSha256, true),
        ("", AuthMethod::None, true),
        ("", AuthMethod::Md5, false),
        ("", AuthMethod::Password, false),
        ("require_auth=md5", AuthMethod::Md5, true),
        ("require_auth=md5", AuthMethod::ScramSha256, false),
        ("require_auth=password,scram-sha-256", AuthMethod::Password, true),
        ("require_auth=!none", AuthMethod::None, false),
        ("require_auth=!none", AuthMethod::ScramSha256, true),
        ("require_auth=!none", AuthMethod::Md5, false),
        ("require_auth=none", AuthMethod::ScramSha256, false),
    ];
    for (text, method, expected) in cases {
        assert_eq!(parse(text).require_auth.allows(method), expected, "{text} {method}");
    }
}

#[test]
fn default_tls_files_are_taken_from_the_home_directory_where_they_exist() {
    let home = tempfile::tempdir().unwrap();
    let environment = Environment { home: Some(home.path().to_owned()), ..user_named("u") };
    let absent = Conninfo::parse("host=pg1", &environment).unwrap();
    assert_eq!((absent.tls.root_cert, absent.tls.client), (RootCert::Absent, None));
    let directory = home.path().join(".postgresql");
    fs::create_dir(&directory).unwrap();
    for name in ["root.crt", "postgresql.crt"] {
        fs::write(directory.join(name), "").unwrap();
    }
    let tls = Conninfo::parse("host=pg1", &environment).unwrap().tls;
    assert_eq!(tls.root_cert, RootCert::File(directory.join("root.crt")));
    assert_eq!(tls.client, Some((directory.join("postgresql.crt"), directory.join("postgresql.key"))));
    assert_eq!(Conninfo::parse("sslcertmode=disable", &environment).unwrap().tls.client, None);
    let system = Conninfo::parse("sslrootcert=system", &environment).unwrap().tls;
    assert_eq!((system.mode, system.root_cert), (SslMode::VerifyFull, RootCert::System));
}

fn write_passfile(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_password_file_is_searched_by_host_port_database_and_user() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".pgpass");
    let lines = "# pg1:5432:replication:u:comment\n\
                 pg1:5432:replication:u:for pg1 ä\n\
                 pg1:*:*:*:any database\n\
                 localhost:5432:*:u:socket\n\
                 \\:\\:1:5432:*:u:with\\:colon\\\\\n\
                 *:7777:replication:u:\n\
                 torn line\n\
                 *:7777:replication:u:second";
    write_passfile(&path, lines, 0o600);
    let environment = Environment { home: Some(home.path().to_owned()), ..user_named("u") };
    let cases = [
        ("host=pg1", "replication", Some("for pg1 ä")),
        ("host=pg1", "postgres", Some("any database")),
        ("host=pg1 port=6000", "replication", Some("any database")),
        ("host=pg1 user=other", "replication", Some("any database")),
        ("host=pg2", "replication", None),
        ("host=/var/run/postgresql", "replication", Some("socket")),
        ("host=/elsewhere", "replication", None),
        ("host=::1", "replication", Some("with:colon\\")),
        ("host=pg2 port=7777", "replication", Some("second")),
        ("host=pg1 password=given", "replication", Some("given")),
        ("hostaddr=::1", "replication", Some("with:colon\\")),
    ];
    for (text, database, expected) in cases {
        let conninfo = Conninfo::parse(text, &environment).unwrap();
        let host = conninfo.hosts().first().unwrap();
        let found = conninfo.password_for(host, database).unwrap().map(|password| password.expose_secret().to_owned());
        assert_eq!(found.as_deref(), expected, "{text} {database}");
    }
}

#[test]
fn a_password_file_that_others_can_read_is_refused_and_a_rotated_one_is_read_again() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("pass");
    let conninfo = parse(&format!("host=pg1 passfile={}", path.display()));
    let host = conninfo.hosts().first().unwrap();
    assert_eq!(password(&conninfo), None, "no file is no password");
    write_passfile(&path, "*:*:*:*:one", 0o640);
    assert_eq!(conninfo.password_for(host, "x").unwrap_err(), PassfileError::TooOpen(path.clone()));
    write_passfile(&path, "*:*:*:*:one", 0o600);
    assert_eq!(password(&conninfo).as_deref(), Some("one"));
    write_passfile(&path, "*:*:*:*:two", 0o600);
    assert_eq!(password(&conninfo).as_deref(), Some("two"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(conninfo.password_for(host, "x").unwrap_err(), PassfileError::NotAFile(path));

    let secret = home.path().join("secret");
    fs::write(&secret, "from file\r\n").unwrap();
    assert_eq!(password(&conninfo.clone().with_password_file(&secret)).as_deref(), Some("from file"));
    assert_eq!(password(&conninfo.with_password("given".into())).as_deref(), Some("given"));
}

#[test]
fn a_service_stands_between_the_words_and_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let text = "# comment\n[other]\nhost=wrong\n[main]\nhost=pg1\nport=6000\n  user=svc  \n\n[main]\nhost=late\n[bad]\nhots=x\n[ldap]\nldap://x\n";
    fs::write(directory.path().join(".pg_service.conf"), text).unwrap();
    fs::write(directory.path().join("pg_service.conf"), "[system]\nhost=sys\n").unwrap();
    let mut environment = Environment::from_variables([
        ("PGUSER", "env"),
        ("PGDATABASE", "envdb"),
        ("PGSYSCONFDIR", directory.path().to_str().unwrap()),
    ]);
    environment.home = Some(directory.path().to_owned());
    let conninfo = Conninfo::parse("service=main port=7000", &environment).unwrap();
    assert_eq!(hosts(&conninfo), ["pg1:7000"]);
    assert_eq!((conninfo.user(), conninfo.dbname()), ("svc", Some("envdb")));
    assert_eq!(hosts(&Conninfo::parse("service=system", &environment).unwrap()), ["sys:5432"]);
    for (service, expected) in [("absent", "no such service"), ("bad", "unknown keyword \"hots\""), ("ldap", "LDAP")] {
        let error = Conninfo::parse(&format!("service={service}"), &environment).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let variables =
        [("PGSERVICE", "main"), ("PGSERVICEFILE", &*directory.path().join(".pg_service.conf").display().to_string())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(hosts(&Conninfo::parse("", &Environment::from_variables(variables)).unwrap()), ["pg1:6000"]);
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in any::<String>()) {
        drop(Conninfo::parse(&text, &user_named("u")));
        drop(Conninfo::parse(&format!("postgresql://{text}"), &user_named("u")));
    }

    #[test]
    fn any_value_survives_its_quotes(value in "[^\0]{1,30}") {
        let quoted = format!("host=pg1 password='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        assert_eq!(password(&parse(&quoted)).as_deref(), Some(value.as_str()));
        let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(password(&parse(&format!("postgresql://u:{encoded}@pg1"))).as_deref(), Some(value.as_str()));
    }
}
