/*
 * root_owned.c
 *		A library to preload: fstat() reports files with the sticky bit as root's.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

int			fstat(int fd, struct stat *st);

int
fstat(int fd, struct stat *st)
{
	int			result = fstatat(fd, "", st, AT_EMPTY_PATH);

	if (result == 0 && S_ISREG(st->st_mode) && (st->st_mode & S_ISVTX) != 0)
		st->st_uid = 0;
	return result;
}
