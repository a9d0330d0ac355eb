/* Sends an entry to the journal as sd_journal_send(3) does: say [-m|-u] FIELD=VALUE...
 * -m: in a sealed file in memory; -u: in one that is not sealed. `%n` in a value is a line's end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char data[1 << 20];

int main(int argc, char **argv)
{
	size_t used = 0;
	int in_file = 0, sealed = 0, at = 1;
	if (argc > 1 && argv[1][0] == '-') {
		in_file = 1;
		sealed = argv[1][1] == 'm';
		at = 2;
	}
	for (; at < argc; at++) {
		char value[65536], *equals = strchr(argv[at], '=');
		uint64_t size = 0;
		int lines = 0;
		for (char *from = equals + 1; *from; from++) {
			if (from[0] == '%' && from[1] == 'n') {
				value[size++] = '\n';
				lines = 1;
				from++;
			} else {
				value[size++] = *from;
			}
		}
		memcpy(data + used, argv[at], equals - argv[at]);
		used += equals - argv[at];
		data[used++] = lines ? '\n' : '=';
		if (lines) {
			memcpy(data + used, &size, 8);
			used += 8;
		}
		memcpy(data + used, value, size);
		used += size;
		data[used++] = '\n';
	}
	struct sockaddr_un address = {AF_UNIX, "/run/systemd/journal/socket"};
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	struct msghdr message = {&address, sizeof address};
	struct iovec part = {data, used};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {{CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	if (in_file) {
		int file = memfd_create("say", MFD_ALLOW_SEALING);
		if (write(file, data, used) != (ssize_t)used)
			return 1;
		if (sealed)
			fcntl(file, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
		memcpy(CMSG_DATA(&control.head), &file, sizeof file);
		message.msg_control = &control;
		message.msg_controllen = sizeof control;
	} else {
		message.msg_iov = &part;
		message.msg_iovlen = 1;
	}
	if (sendmsg(fd, &message, 0) < 0) {
		perror("say");
		return 1;
	}
	return 0;
}
