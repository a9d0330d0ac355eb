/* A service by a script, for tests of pods that speak the protocol of sd_notify(3). Each argument is a step:

   say:TEXT        send TEXT to $NOTIFY_SOCKET; "|" in it stands for a newline
   every:MS:TEXT   the same again and again, until it is killed
   barrier         send BARRIER=1 with a pipe, and print "barrier" once its other end is closed
   show:NAME       print NAME=VALUE of the environment, or NAME
   print:TEXT      a line on standard output
   wait:PATH       until there is such a file
   need:PATH       end with status 1 and a word about it unless there is such a file
   sleep:MS
   ignore:NUMBER   a signal
   exit:STATUS

   At the end it waits for signals: SIGHUP is a reload, SIGTERM a good end. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void nap(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* A line at once, and not by way of stdout's buffer: a signal's handler may come in the middle of another's. */
static void line(const char *text) { dprintf(1, "%s\n", text); }

static void say(const char *text, int fd) {
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char data[300000];
    if (!path) { line("no NOTIFY_SOCKET"); return; }
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    if (path[0] == '@') to.sun_path[0] = '\0';
    snprintf(data, sizeof data, "%s", text);
    for (char *c = data; *c; c++) if (*c == '|') *c = '\n';
    struct iovec part = {data, strlen(data)};
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } extra = {0};
    struct msghdr message = {.msg_name = &to, .msg_namelen = offsetof(struct sockaddr_un, sun_path) + strlen(path), .msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &extra;
        message.msg_controllen = sizeof extra;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET; head->cmsg_type = SCM_RIGHTS; head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    int s = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (sendmsg(s, &message, 0) < 0) perror("sendmsg");
    close(s);
}

static void show(const char *name) {
    const char *value = getenv(name);
    dprintf(1, "%s%s%s\n", name, value ? "=" : "", value ? value : "");
}

static void barrier(void) {
    int ends[2];
    char byte;
    if (pipe(ends)) { perror("pipe"); return; }
    say("BARRIER=1", ends[1]);
    close(ends[1]);
    if (read(ends[0], &byte, 1) == 0) line("barrier");
    close(ends[0]);
}

static void on_term(int number) { (void)number; _exit(0); }

static void on_hup(int number) {
    struct timespec now;
    char text[100];
    (void)number;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(text, sizeof text, "RELOADING=1|MONOTONIC_USEC=%lld", now.tv_sec * 1000000LL + now.tv_nsec / 1000);
    say(text, -1);
    nap(300);
    say("READY=1|STATUS=reloaded", -1);
    line("reloaded");
}

int main(int count, char **steps) {
    signal(SIGTERM, on_term);
    signal(SIGHUP, on_hup);
    for (int i = 1; i < count; i++) {
        char *step = steps[i], *rest = strchr(step, ':');
        rest = rest ? rest + 1 : step + strlen(step);
        if (!strncmp(step, "say:", 4)) say(rest, -1);
        else if (!strncmp(step, "every:", 6)) for (char *text = strchr(rest, ':') + 1;;) { say(text, -1); nap(atol(rest)); }
        else if (!strcmp(step, "barrier")) barrier();
        else if (!strncmp(step, "show:", 5)) show(rest);
        else if (!strncmp(step, "print:", 6)) line(rest);
        else if (!strncmp(step, "wait:", 5)) while (access(rest, F_OK)) nap(10);
        else if (!strncmp(step, "need:", 5)) { if (access(rest, F_OK)) { line("no"); line(rest); return 1; } }
        else if (!strncmp(step, "sleep:", 6)) nap(atol(rest));
        else if (!strncmp(step, "ignore:", 7)) signal(atoi(rest), SIG_IGN);
        else if (!strncmp(step, "exit:", 5)) return atoi(rest);
        else { fprintf(stderr, "no such step: %s\n", step); return 99; }
    }
    for (;;) pause();
}
