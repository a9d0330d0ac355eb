/* What an app can say about the place it runs in. One verb per question, one answer per line, nothing else printed:
 *
 * What the process is
 *   id | env | cwd | args ... | umask | pid | limits [NAME] | oom | hostname | ns | cgroup | seccomp | nnp | caps | signals
 *   fds                      number, kind and access of each descriptor;  fdlinks  number and what /proc calls it
 *   ps                       PID, parent, state and name of every process it can see
 *   tty                      for descriptors 0 to 2 "N tty ROWSxCOLUMNS" or "N none", then the session's terminal
 * What it sees
 *   mounts | stat PATH | device PATH | statvfs PATH | readlink PATH | xattrs PATH | read PATH | list PATH
 * What it changes; each prints "WHAT: ok" or "WHAT: ERRNO" unless it says otherwise
 *   print-to PATH            whatever is printed from now on
 *   write PATH TEXT | append PATH TEXT                     print nothing when they succeed
 *   open PATH [r|w|rw] | mkdir PATH | symlink TEXT PATH | unlink PATH | chmod PATH MODE | chown PATH UID GID
 *   fchmod NUMBER MODE       of a descriptor
 *   mknod PATH b|c|p MAJOR MINOR | setxattr PATH NAME VALUE | mount TYPE PATH [OPTIONS] | chroot PATH | chdir PATH
 *   setns PATH | kill PID SIGNAL | ptrace PID | become UID GID | raise-caps | raise-limit | tiocsti TEXT
 *   setpriv-ambient CAP      put one capability into the inheritable and ambient sets
 *   shocker PATH             open the root directory of the file system PATH is on, by its handle
 *   give-key NAME            put a key into a new session keyring;  find-key NAME    look for it in the session's
 *   call NAME                try a harmless form of a system call in a child (table `attempt`)
 *   calls FIRST LAST         every system call by number, with arguments that cannot be right (bench/profile)
 *   socket FAMILY TYPE PROTOCOL | listen ADDRESS | connect[-when-there] ADDRESS TEXT | accept
 *                            ADDRESS is HOST:PORT, /path or @abstract; accept prints what the client sent
 *   answer FD TEXT [TIMES]   say TEXT to each connection;  receive FD, tell FD TEXT  one message;  close FD
 *   swap A B                 exchange two names for ever;  exe-writer SECONDS  try to open others' programs for writing
 * What it prints and reads
 *   say TEXT | say-error TEXT | lines N TEXT | error-lines N TEXT | bytes N | echo
 * How it goes on and ends
 *   exit N | signal N | stop | sleep [SECONDS] | ignore-term | wait-for PATH | exec PROGRAM ARGS...
 *   orphan                   leave a sleeping child behind, print its PID
 *   daemon                   the same, twice removed and with no descriptor;  hold  the same, with all descriptors
 *   zombies N                leave N dead grandchildren to whoever is init
 *   forkbomb N | memhog BYTES        as far as it goes; print how far
 *
 * Several verbs can follow each other, separated by the word "+". Every failure prints the errno's words and exits 99,
 * unless "try" comes before the verb: then what follows is still done.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static jmp_buf next_verb;
static int trying;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    fflush(stdout);
    if (trying)
        longjmp(next_verb, 1);
    exit(99);
}

static const char *errno_name(int number) {
    const char *name = strerrorname_np(number);
    return name ? name : "unknown";
}

/* The answer of whatever may be refused. */
static void report(const char *what, long result) {
    printf("%s: %s\n", what, result < 0 ? errno_name(errno) : "ok");
}

static int print_link(const char *path) {
    char target[4096];
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return -1;
    printf("%.*s\n", (int)length, target);
    return 0;
}

/* --- what the process is */

static void id(void) {
    gid_t groups[256];
    int count = getgroups(256, groups);
    uid_t r, e, s;
    gid_t rg, eg, sg;
    getresuid(&r, &e, &s);
    getresgid(&rg, &eg, &sg);
    printf("uid %u %u %u\ngid %u %u %u\ngroups", r, e, s, rg, eg, sg);
    for (int i = 0; i < count; i++)
        printf(" %u", groups[i]);
    printf("\n");
}

static const char *kind(mode_t mode) {
    return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "directory" : S_ISCHR(mode) ? "character" : S_ISBLK(mode) ? "block"
         : S_ISFIFO(mode) ? "fifo" : S_ISSOCK(mode) ? "socket" : S_ISLNK(mode) ? "link" : "other";
}

static void fds(void) {
    for (int fd = 0; fd < 4096; fd++) {
        struct stat status;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fstat(fd, &status) < 0)
            continue;
        const char *access[] = {"read", "write", "both", "path"};
        printf("%d %s %s\n", fd, kind(status.st_mode), access[flags & O_PATH ? 3 : flags & O_ACCMODE]);
    }
}

static void fdlinks(void) {
    for (int fd = 0; fd < 4096; fd++) {
        char path[64];
        if (fcntl(fd, F_GETFD) < 0)
            continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        printf("%d ", fd);
        if (print_link(path) < 0)
            printf("?\n");
    }
}

static void cat(const char *path, const char *prefix) {
    FILE *file = fopen(path, "r");
    char line[65536];
    if (!file)
        fail(path);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, prefix, strlen(prefix)))
            fputs(line, stdout);
    if (ferror(file))
        fail(path);
    fclose(file);
}

static void limits(const char *only) {
    static const char *const names[] = {"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock",
                                        "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        struct rlimit limit;
        if (*only && strcmp(only, names[i]))
            continue;
        getrlimit(i, &limit);
        printf("%s %lld %lld\n", names[i], (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
}

static void namespaces(void) {
    static const char *const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        if (print_link(path) < 0)
            fail(path);
    }
}

static void hostname(void) {
    struct utsname name;
    uname(&name);
    printf("%s\n", name.nodename);
}

static void pids(void) {
    printf("pid %d\nparent %d\ngroup %d\nsession %d\n", getpid(), getppid(), getpgid(0), getsid(0));
}

static int only_numbers(const struct dirent *entry) { return entry->d_name[0] >= '1' && entry->d_name[0] <= '9'; }

static void ps(void) {
    struct dirent **entries;
    int count = scandir("/proc", &entries, only_numbers, versionsort);
    if (count < 0)
        fail("/proc");
    for (int i = 0; i < count; i++) {
        char path[300], name[64], state;
        int pid, parent;
        snprintf(path, sizeof path, "/proc/%s/stat", entries[i]->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fscanf(file, "%d (%63[^)]) %c %d", &pid, name, &state, &parent) == 4)
            printf("%d %d %c %s\n", pid, parent, state, name);
        fclose(file);
    }
}

static void try_open(const char *path, const char *mode) {
    int access = !strcmp(mode, "w") ? O_WRONLY : !strcmp(mode, "rw") ? O_RDWR : O_RDONLY;
    int fd = open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    report(path, fd);
    close(fd);
}

static void tty(void) {
    for (int fd = 0; fd < 3; fd++) {
        struct winsize size;
        if (isatty(fd) && !ioctl(fd, TIOCGWINSZ, &size))
            printf("%d tty %dx%d\n", fd, size.ws_row, size.ws_col);
        else
            printf("%d none\n", fd);
    }
    try_open("/dev/tty", "rw");
}

/* --- what it sees */

static void show_stat(const char *path) {
    struct stat status;
    if (lstat(path, &status) < 0)
        fail(path);
    printf("%s %04o %u %u\n", kind(status.st_mode), status.st_mode & 07777, status.st_uid, status.st_gid);
}

static void show_device(const char *path) {
    struct stat status;
    if (stat(path, &status) < 0)
        fail(path);
    printf("%s %u:%u\n", kind(status.st_mode), major(status.st_rdev), minor(status.st_rdev));
}

/* The flags statvfs(3) has for a mount, and the size of its file system in bytes. */
static void show_statvfs(const char *path) {
    static const struct { unsigned long flag; const char *name; } flags[] = {
        {ST_RDONLY, "ro"}, {ST_NOSUID, "nosuid"}, {ST_NODEV, "nodev"}, {ST_NOEXEC, "noexec"}, {ST_NOATIME, "noatime"},
    };
    struct statvfs status;
    if (statvfs(path, &status) < 0)
        fail(path);
    printf("size=%llu", (unsigned long long)status.f_blocks * status.f_frsize);
    for (int i = 0; i < (int)(sizeof flags / sizeof *flags); i++)
        if (status.f_flag & flags[i].flag)
            printf(" %s", flags[i].name);
    printf("\n");
}

static void show_xattrs(const char *path) {
    char names[65536], value[65536];
    ssize_t length = llistxattr(path, names, sizeof names);
    if (length < 0)
        fail(path);
    for (char *name = names; name < names + length; name += strlen(name) + 1) {
        ssize_t size = lgetxattr(path, name, value, sizeof value);
        printf("%s=%.*s\n", name, size < 0 ? 0 : (int)size, value);
    }
}

static void list(const char *path) {
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    if (count < 0)
        fail(path);
    for (int i = 0; i < count; i++)
        if (strcmp(entries[i]->d_name, ".") && strcmp(entries[i]->d_name, ".."))
            printf("%s\n", entries[i]->d_name);
}

/* --- what it changes */

static void put(const char *path, const char *text, int flags) {
    int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
}

static int make_node(const char *path, char type, int major, int minor) {
    mode_t mode = type == 'b' ? S_IFBLK : type == 'c' ? S_IFCHR : S_IFIFO;
    return mknod(path, mode | 0666, makedev(major, minor));
}

static int enter_namespace(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : setns(fd, 0);
}

static int attach(pid_t pid) {
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
        return -1;
    return ptrace(PTRACE_DETACH, pid, NULL, NULL) < 0 && errno != ESRCH ? -1 : 0;
}

static int become(uid_t uid, gid_t gid) {
    return setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0 ? -1 : 0;
}

static int set_capabilities(int all, int inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) < 0)
        return -1;
    if (all) {
        FILE *file = fopen("/proc/sys/kernel/cap_last_cap", "r");
        int last = 40;
        if (file && fscanf(file, "%d", &last) == 1)
            fclose(file);
        for (int i = 0; i <= last; i++)
            data[i / 32].permitted |= 1u << i % 32;
    } else {
        data[inheritable / 32].inheritable |= 1u << inheritable % 32;
    }
    return syscall(SYS_capset, &header, data);
}

static int add_ambient(int capability) {
    if (set_capabilities(0, capability) < 0)
        return -1;
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
}

static int raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max += 1;
    return setrlimit(RLIMIT_NOFILE, &limit);
}

/* TIOCSTI: put text into the input of the terminal, as if it had been typed (CVE-2017-5226). */
static int type_ahead(const char *text) {
    for (; *text; text++)
        if (ioctl(0, TIOCSTI, text) < 0)
            return -1;
    return 0;
}

/* open_by_handle_at(2) reaches every file of the file system that `path` is on, whatever the root of the process: here
 * its root directory, which is inode 2 on ext4 ("shocker"). */
static long by_handle(const char *path) {
    struct { struct file_handle head; unsigned int inode, generation; } handle = {{8, 1}, 2, 0};
    int place = open(path, O_RDONLY | O_CLOEXEC);
    return place < 0 ? -1 : open_by_handle_at(place, &handle.head, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static long clone_user(void) {
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (child == 0)
        _exit(0);
    return child;
}

static long new_map(void) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
}

/* Of this process, the kernel's part included. */
static long count_events(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK};
    return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static long own_ptrace(void) {
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    int result = attach(child), error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    errno = error;
    return result;
}

static long own_memory(void) {
    char from[1] = "x", to[1];
    struct iovec here = {to, 1}, there = {from, 1};
    return process_vm_readv(getppid(), &here, 1, &there, 1, 0);
}

/* A form of each call that harms nobody: it asks for nothing, or for something the kernel refuses only after it has
 * looked at the caller's privileges. Any answer but EPERM, ENOSYS and the like shows that the call was reached. */
static long attempt(const char *name) {
    static const char nobody[] = "/there/is/no/such/path";
    static unsigned long zeros[64];
#define CALL(word) if (!strcmp(name, #word)) return
    CALL(mount) mount("x", "/", "no-such-type", 0, NULL);
    CALL(umount2) umount2("/bin", 0);
    CALL(pivot_root) syscall(SYS_pivot_root, "/bin", "/bin");
    CALL(open_tree) syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    CALL(move_mount) syscall(SYS_move_mount, AT_FDCWD, "/bin", AT_FDCWD, "/bin", 0);
    CALL(mount_setattr) syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, zeros, 32);
    CALL(fsopen) syscall(SYS_fsopen, "tmpfs", 1);
    CALL(fspick) syscall(SYS_fspick, AT_FDCWD, "/", 1);
    CALL(chroot) chroot("/");
    CALL(setns) enter_namespace("/proc/self/ns/uts");
    CALL(unshare_user) unshare(CLONE_NEWUSER);
    CALL(unshare_mount) unshare(CLONE_NEWNS);
    CALL(unshare_uts) unshare(CLONE_NEWUTS);
    CALL(unshare_net) unshare(CLONE_NEWNET);
    CALL(clone3) syscall(SYS_clone3, NULL, 0);
    CALL(clone_user) clone_user();
    CALL(init_module) syscall(SYS_init_module, zeros, 8, "");
    CALL(finit_module) syscall(SYS_finit_module, -1, "", 0);
    CALL(delete_module) syscall(SYS_delete_module, "no_such_module", O_NONBLOCK);
    CALL(keyctl) syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
    CALL(add_key) syscall(SYS_add_key, "user", "inspect", "x", 1, KEY_SPEC_PROCESS_KEYRING);
    CALL(request_key) syscall(SYS_request_key, "user", "no-such-key", NULL, 0);
    CALL(bpf) new_map();
    CALL(perf_event_open) count_events();
    CALL(userfaultfd) syscall(SYS_userfaultfd, O_CLOEXEC);
    CALL(io_uring_setup) syscall(SYS_io_uring_setup, 1, zeros);
    CALL(kexec_load) syscall(SYS_kexec_load, 0, 1000000, NULL, 0);
    CALL(kexec_file_load) syscall(SYS_kexec_file_load, -1, -1, 0, NULL, 1 << 30);
    CALL(reboot) syscall(SYS_reboot, 0, 0, 0, NULL);
    CALL(swapon) swapon(nobody, 0);
    CALL(swapoff) swapoff(nobody);
    CALL(acct) acct(nobody);
    CALL(quotactl) syscall(SYS_quotactl, 0x80000100, nobody, 0, zeros);
    CALL(adjtimex) adjtimex(&(struct timex){.modes = ADJ_TICK});
    CALL(sethostname) syscall(SYS_sethostname, nobody, 1000);
    CALL(setdomainname) syscall(SYS_setdomainname, nobody, 1000);
    CALL(iopl) iopl(3);
    CALL(ioperm) ioperm(0x80, 1, 1);
    CALL(syslog) syscall(SYS_syslog, 3, zeros, 8);
    CALL(open_by_handle_at) by_handle("/");
    CALL(fanotify_init) fanotify_init(FAN_CLASS_CONTENT, 0);
    CALL(ptrace) own_ptrace();
    CALL(process_vm_readv) own_memory();
    CALL(kcmp) syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0);
    CALL(personality) personality(ADDR_NO_RANDOMIZE);
    CALL(setpriority) setpriority(PRIO_PROCESS, 0, -5);
    CALL(sched_setscheduler) sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1});
    CALL(landlock_create_ruleset) syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    CALL(memfd_create) memfd_create("x", MFD_CLOEXEC);
    CALL(uname) uname(&(struct utsname){0});
    CALL(getcwd) getcwd((char *)zeros, sizeof zeros) ? 0 : -1;
    CALL(mkdir) mkdir("/tmp", 0755) < 0 && errno == EEXIST ? 0 : -1;
    CALL(chmod) chmod(nobody, 0) < 0 && errno == ENOENT ? 0 : -1;
#undef CALL
    errno = EINVAL;
    fail(name);
    return -1;
}

/* A filter may answer with death, and some calls change the caller. */
static void call(const char *name) {
    fflush(stdout);
    pid_t child = fork();
    int status;
    if (child == 0) {
        report(name, attempt(name));
        fflush(stdout);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        fail("fork");
    if (WIFSIGNALED(status))
        printf("%s: SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
}

/* Those that would end or stop the one who asks, hang up its terminal or keep the machine busy. */
static int is_left_out(int number) {
    static const int left_out[] = {SYS_exit, SYS_exit_group, SYS_pause, SYS_fork, SYS_vfork, SYS_rt_sigreturn,
                                   SYS_reboot, SYS_vhangup, SYS_sync, SYS_kill, SYS_tkill, SYS_tgkill};
    for (int i = 0; i < (int)(sizeof left_out / sizeof *left_out); i++)
        if (number == left_out[i])
            return 1;
    return 0;
}

static void calls(int first, int last) {
    for (int number = first; number <= last; number++) {
        int status;
        if (is_left_out(number))
            continue;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            alarm(2);
            long result = syscall(number, -1, -1, -1, -1, -1, -1);
            printf("%d %s\n", number, result == -1 ? errno_name(errno) : "ok");
            fflush(stdout);
            _exit(0);
        }
        if (child < 0 || waitpid(child, &status, 0) < 0)
            fail("fork");
        if (WIFSIGNALED(status))
            printf("%d SIG%s\n", number, sigabbrev_np(WTERMSIG(status)));
    }
}

/* HOST:PORT, /path or @abstract. */
static socklen_t address(const char *text, struct sockaddr_storage *storage) {
    struct sockaddr_un *local = (void *)storage;
    struct sockaddr_in *internet = (void *)storage;
    memset(storage, 0, sizeof *storage);
    if (*text == '/' || *text == '@') {
        local->sun_family = AF_UNIX;
        strncpy(local->sun_path, text, sizeof local->sun_path - 1);
        if (*text == '@')
            local->sun_path[0] = 0;
        return offsetof(struct sockaddr_un, sun_path) + strlen(text) + (*text == '/');
    }
    char host[64] = "", *colon = strchr(text, ':');
    if (colon)
        snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    internet->sin_family = AF_INET;
    internet->sin_port = htons(colon ? atoi(colon + 1) : 0);
    inet_pton(AF_INET, host, &internet->sin_addr);
    return sizeof *internet;
}

static int listener = -1;

/* Prints the port too when the kernel chose it. */
static void start_listening(const char *text) {
    struct sockaddr_storage place;
    socklen_t length = address(text, &place);
    listener = socket(place.ss_family, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (void *)&place, length) < 0 || listen(listener, 16) < 0) {
        report(text, -1);
        return;
    }
    getsockname(listener, (void *)&place, &length);
    printf("%s: ok", text);
    if (place.ss_family == AF_INET)
        printf(" %d", ntohs(((struct sockaddr_in *)&place)->sin_port));
    printf("\n");
}

static void connect_to(const char *text, const char *message, int tries) {
    struct sockaddr_storage place;
    socklen_t length = address(text, &place);
    int fd = socket(place.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = fd < 0 ? -1 : connect(fd, (void *)&place, length);
    while (result < 0 && --tries > 0 && (errno == ECONNREFUSED || errno == ENOENT)) {
        usleep(10000);
        result = connect(fd, (void *)&place, length);
    }
    report(text, result);
    if (!result && write(fd, message, strlen(message)) < 0)
        fail(text);
    close(fd);
}

static void accept_one(void) {
    char buffer[4096];
    ssize_t length;
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        fail("accept");
    while ((length = read(fd, buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, length, stdout);
    printf("\n");
    close(fd);
}

/* Accept connections on a socket that was handed over, for ever or `most` times, and say `text` to each. */
static void answer(int fd, const char *text, int most) {
    for (int done = 0; !most || done < most; done++) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0)
            fail("accept");
        if (write(connection, text, strlen(text)) < 0)
            fail("write");
        close(connection);
    }
}

static void receive(int fd) {
    char buffer[4096];
    ssize_t length = read(fd, buffer, sizeof buffer);
    if (length < 0)
        fail("read");
    printf("%.*s\n", (int)length, buffer);
}

static void swap(const char *one, const char *other) {
    for (;;)
        if (renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) < 0)
            fail(one);
}

#define PROGRAMS 1024 /* different ones on the machine, those of others too */

/* The programs of other processes, held by O_PATH so that they can be tried again when nobody runs them any more
 * (CVE-2019-5736). Prints "seen PROGRAM" once for each and "opened PROGRAM" when one can be written to. */
static void exe_writer(int seconds) {
    static struct { int fd, opened; struct stat status; char name[4096]; } found[PROGRAMS];
    struct stat own;
    int count = 0;
    time_t end = time(NULL) + seconds;
    if (stat("/proc/self/exe", &own) < 0)
        fail("/proc/self/exe");
    printf("looking\n");
    fflush(stdout);
    while (time(NULL) < end) {
        struct dirent *entry;
        DIR *proc = opendir("/proc");
        while (proc && (entry = readdir(proc))) {
            struct stat status;
            char path[300];
            int known = 0;
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            if (!only_numbers(entry) || stat(path, &status) < 0)
                continue;
            for (int i = 0; i < count; i++)
                known |= found[i].status.st_ino == status.st_ino && found[i].status.st_dev == status.st_dev;
            if (known || count == PROGRAMS || (status.st_ino == own.st_ino && status.st_dev == own.st_dev))
                continue;
            int fd = open(path, O_PATH | O_CLOEXEC);
            ssize_t length = readlink(path, found[count].name, sizeof found[count].name - 1);
            if (fd < 0 || fstat(fd, &found[count].status) < 0)
                continue;
            found[count].name[length < 0 ? 0 : length] = 0;
            found[count].fd = fd;
            found[count].opened = 0;
            printf("seen %s\n", found[count++].name);
            fflush(stdout);
        }
        if (proc)
            closedir(proc);
        for (int i = 0; i < count; i++) {
            char path[64];
            snprintf(path, sizeof path, "/proc/self/fd/%d", found[i].fd);
            int fd = found[i].opened ? -1 : open(path, O_WRONLY | O_CLOEXEC);
            if (fd < 0)
                continue;
            found[i].opened = 1;
            printf("opened %s\n", found[i].name);
            fflush(stdout);
            close(fd);
        }
    }
}

/* --- what it prints and reads */

static void lines(FILE *stream, int count, const char *text) {
    for (int i = 0; i < count; i++)
        fprintf(stream, "%s %d\n", text, i);
    fflush(stream);
}

static void bytes(long count) {
    while (count-- > 0)
        putchar('x');
}

static void echo(void) {
    char buffer[65536];
    ssize_t length;
    fflush(stdout);
    while ((length = read(0, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, length) < 0)
            fail("stdout");
}

/* --- how it goes on and ends */

static void close_all(void) {
    for (int fd = 0; fd < 4096; fd++)
        close(fd);
}

static pid_t leave_behind(void (*first)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        first();
        setsid();
        for (;;)
            pause();
    }
    return child;
}

static void close_output(void) { close(1); }

static void nothing(void) { }

static void fork_and_leave(void) {
    close_all();
    setsid();
    if (fork() > 0)
        _exit(0);
}

static void zombies(int count) {
    fflush(stdout);
    pid_t parent = fork();
    if (parent < 0)
        fail("fork");
    if (parent == 0) {
        while (count-- > 0)
            if (fork() == 0)
                _exit(0);
        _exit(0);
    }
    waitpid(parent, NULL, 0);
}

/* Children that do nothing, until no more can be had; they end with this process. */
static void fork_bomb(int most) {
    int count = 0, error = 0;
    fflush(stdout);
    while (count < most) {
        pid_t child = fork();
        if (child < 0) {
            error = errno;
            break;
        }
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
        count++;
    }
    printf("%d %s\n", count, error ? errno_name(error) : "ok");
}

static void memory_hog(long size) {
    const long step = 1 << 20;
    long got = 0;
    while (got < size) {
        char *block = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            break;
        memset(block, 1, step);
        got += step;
    }
    printf("%ld\n", got);
}

static void wait_for(const char *path) {
    for (int i = 0; i < 6000 && access(path, F_OK) < 0; i++)
        usleep(10000);
    if (access(path, F_OK) < 0)
        fail(path);
}

static void give_key(const char *name) {
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    report(name, syscall(SYS_add_key, "user", name, "x", 1, KEY_SPEC_SESSION_KEYRING));
}

static void find_key(const char *name) {
    report(name, syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", name, 0));
}

static char **words;
static int count_of_words;

static const char *word(int index) { return index < count_of_words ? words[index] : ""; }
static int number(int index) { return (int)strtol(word(index), NULL, 0); }

#define VERB(text) else if (!strcmp(words[0], text))

static int says_what_it_is(void) {
    char buffer[4096];
    if (!strcmp(words[0], "id")) id();
    VERB("env") for (char **e = environ; *e; e++) printf("%s\n", *e);
    VERB("cwd") getcwd(buffer, sizeof buffer) ? (void)printf("%s\n", buffer) : fail("cwd");
    VERB("args") for (int i = 1; i < count_of_words; i++) printf("%s\n", words[i]);
    VERB("umask") printf("%04o\n", umask(0));
    VERB("pid") pids();
    VERB("limits") limits(word(1));
    VERB("oom") cat("/proc/self/oom_score_adj", "");
    VERB("hostname") hostname();
    VERB("ns") namespaces();
    VERB("cgroup") cat("/proc/self/cgroup", "");
    VERB("seccomp") cat("/proc/self/status", "Seccomp:");
    VERB("nnp") cat("/proc/self/status", "NoNewPrivs");
    VERB("caps") cat("/proc/self/status", "Cap");
    VERB("signals") { cat("/proc/self/status", "SigBlk"); cat("/proc/self/status", "SigIgn"); }
    VERB("fds") fds();
    VERB("fdlinks") fdlinks();
    VERB("ps") ps();
    VERB("tty") tty();
    else return 0;
    return 1;
}

static int says_what_it_sees(void) {
    const char *path = word(1);
    if (!strcmp(words[0], "mounts")) cat("/proc/self/mountinfo", "");
    VERB("stat") show_stat(path);
    VERB("device") show_device(path);
    VERB("statvfs") show_statvfs(path);
    VERB("readlink") { if (print_link(path) < 0) fail(path); }
    VERB("xattrs") show_xattrs(path);
    VERB("read") cat(path, "");
    VERB("list") list(path);
    else return 0;
    return 1;
}

static int changes(void) {
    const char *path = word(1);
    if (!strcmp(words[0], "write")) put(path, word(2), O_TRUNC);
    VERB("append") put(path, word(2), O_APPEND);
    VERB("open") try_open(path, word(2));
    VERB("mkdir") report(path, mkdir(path, 0755));
    VERB("symlink") report(word(2), symlink(path, word(2)));
    VERB("unlink") report(path, unlink(path));
    VERB("chmod") report(path, chmod(path, strtol(word(2), NULL, 8)));
    VERB("fchmod") report(path, fchmod(number(1), strtol(word(2), NULL, 8)));
    VERB("chown") report(path, chown(path, number(2), number(3)));
    VERB("mknod") report(path, make_node(path, *word(2), number(3), number(4)));
    VERB("setxattr") report(word(2), setxattr(path, word(2), word(3), strlen(word(3)), 0));
    VERB("mount") report(word(2), mount(path, word(2), path, 0, word(3)));
    VERB("chroot") report(path, chroot(path));
    VERB("chdir") report(path, chdir(path));
    VERB("setns") report(path, enter_namespace(path));
    VERB("kill") report(path, kill(number(1), number(2)));
    VERB("ptrace") report(path, attach(number(1)));
    VERB("become") report("become", become(number(1), number(2)));
    VERB("raise-caps") report("raise-caps", set_capabilities(1, 0));
    VERB("setpriv-ambient") report("setpriv-ambient", add_ambient(number(1)));
    VERB("raise-limit") report("raise-limit", raise_limit());
    VERB("tiocsti") report("tiocsti", type_ahead(path));
    VERB("call") call(path);
    VERB("calls") calls(number(1), number(2));
    VERB("shocker") report(path, by_handle(path));
    VERB("socket") report("socket", socket(number(1), number(2), number(3)));
    VERB("listen") start_listening(path);
    VERB("connect") connect_to(path, word(2), 1);
    VERB("connect-when-there") connect_to(path, word(2), 2000);
    VERB("accept") accept_one();
    VERB("answer") answer(number(1), word(2), number(3));
    VERB("receive") receive(number(1));
    VERB("tell") { if (write(number(1), word(2), strlen(word(2))) < 0) fail("write"); }
    VERB("close") close(number(1));
    VERB("give-key") give_key(path);
    VERB("find-key") find_key(path);
    VERB("swap") swap(path, word(2));
    VERB("exe-writer") exe_writer(number(1));
    else return 0;
    return 1;
}

static int prints_or_goes_on(void) {
    if (!strcmp(words[0], "say")) printf("%s\n", word(1));
    VERB("print-to") { if (!freopen(word(1), "a", stdout)) fail(word(1)); }
    VERB("say-error") fprintf(stderr, "%s\n", word(1));
    VERB("lines") lines(stdout, number(1), word(2));
    VERB("error-lines") lines(stderr, number(1), word(2));
    VERB("bytes") bytes(atol(word(1)));
    VERB("echo") echo();
    VERB("exit") { fflush(stdout); _exit(number(1)); }
    VERB("signal") { fflush(stdout); kill(getpid(), number(1)); }
    VERB("stop") { fflush(stdout); kill(getpid(), SIGSTOP); }
    VERB("sleep") { fflush(stdout); *word(1) ? (void)sleep(number(1)) : (void)pause(); }
    VERB("ignore-term") signal(SIGTERM, SIG_IGN);
    VERB("wait-for") wait_for(word(1));
    VERB("exec") { fflush(stdout); execv(word(1), words + 1); fail(word(1)); }
    VERB("orphan") printf("%d\n", leave_behind(close_output));
    VERB("daemon") leave_behind(fork_and_leave);
    VERB("hold") leave_behind(nothing);
    VERB("zombies") zombies(number(1));
    VERB("forkbomb") fork_bomb(number(1));
    VERB("memhog") memory_hog(atol(word(1)));
    else return 0;
    return 1;
}

static void verb(int argc, char **argv) {
    trying = !strcmp(argv[0], "try");
    words = argv + trying, count_of_words = argc - trying;
    if (setjmp(next_verb))
        return;
    if (!count_of_words || !(says_what_it_is() || says_what_it_sees() || changes() || prints_or_goes_on())) {
        errno = EINVAL;
        fail(count_of_words ? words[0] : "try");
    }
    fflush(stdout);
}

int main(int argc, char **argv) {
    for (int first = 1, last; first < argc; first = last + 1) {
        for (last = first; last < argc && strcmp(argv[last], "+"); last++)
            ;
        if (last > first) {
            char *separator = argv[last];
            argv[last] = NULL; /* execv wants its end */
            verb(last - first, argv + first);
            argv[last] = separator;
        }
    }
    return 0;
}
