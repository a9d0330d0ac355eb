/* What an app can say about the place it runs in. One verb per question, one answer per line, nothing else printed:
 *
 *   id | env | cwd | fds | signals | mounts | umask | caps | nnp        what the process is
 *   stat PATH | read PATH | write PATH TEXT | list PATH                 what it sees
 *   exit N | signal N | sleep [SECONDS] | ignore-term                   how it ends
 *   args ...                                                           its arguments
 *   orphan                                                             leave a sleeping child behind, print its PID
 *
 * Several verbs can follow each other, separated by the word "+". Every failure prints the errno's words and exits 99.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(99);
}

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

/* Number, kind and access mode of each open descriptor. */
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

static void cat(const char *path, const char *prefix) {
    FILE *file = fopen(path, "r");
    char line[65536];
    if (!file)
        fail(path);
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, prefix, strlen(prefix)))
            fputs(line, stdout);
    fclose(file);
}

static void show_stat(const char *path) {
    struct stat status;
    if (lstat(path, &status) < 0)
        fail(path);
    printf("%s %04o %u %u\n", kind(status.st_mode), status.st_mode & 07777, status.st_uid, status.st_gid);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(path);
    close(fd);
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

static void orphan(void) {
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(1);
        setsid();
        pause();
    }
    printf("%d\n", child);
}

static void verb(int argc, char **argv) {
    char *name = argv[0], *arg = argc > 1 ? argv[1] : "";
    char buffer[4096];
    if (!strcmp(name, "id")) id();
    else if (!strcmp(name, "env")) for (char **e = environ; *e; e++) printf("%s\n", *e);
    else if (!strcmp(name, "cwd")) getcwd(buffer, sizeof buffer) ? (void)printf("%s\n", buffer) : fail("cwd");
    else if (!strcmp(name, "fds")) fds();
    else if (!strcmp(name, "signals")) { cat("/proc/self/status", "SigBlk"); cat("/proc/self/status", "SigIgn"); }
    else if (!strcmp(name, "caps")) cat("/proc/self/status", "Cap");
    else if (!strcmp(name, "nnp")) cat("/proc/self/status", "NoNewPrivs");
    else if (!strcmp(name, "mounts")) cat("/proc/self/mountinfo", "");
    else if (!strcmp(name, "umask")) printf("%04o\n", umask(0));
    else if (!strcmp(name, "stat")) show_stat(arg);
    else if (!strcmp(name, "read")) cat(arg, "");
    else if (!strcmp(name, "write")) put(arg, argc > 2 ? argv[2] : "");
    else if (!strcmp(name, "list")) list(arg);
    else if (!strcmp(name, "args")) for (int i = 1; i < argc; i++) printf("%s\n", argv[i]);
    else if (!strcmp(name, "orphan")) orphan();
    else if (!strcmp(name, "ignore-term")) signal(SIGTERM, SIG_IGN);
    else if (!strcmp(name, "exit")) { fflush(stdout); _exit(atoi(arg)); }
    else if (!strcmp(name, "signal")) { fflush(stdout); kill(getpid(), atoi(arg)); }
    else if (!strcmp(name, "sleep")) { fflush(stdout); *arg ? (void)sleep(atoi(arg)) : (void)pause(); }
    else { errno = EINVAL; fail(name); }
    fflush(stdout);
}

int main(int argc, char **argv) {
    for (int first = 1, last; first < argc; first = last + 1) {
        for (last = first; last < argc && strcmp(argv[last], "+"); last++)
            ;
        if (last > first)
            verb(last - first, argv + first);
    }
    return 0;
}
