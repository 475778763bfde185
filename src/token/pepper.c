/*
 * pepper.c
 *		The peppers: secrets outside the database that sign digests.
 *
 * With the setting rk_apikeys.pepper_file the digest of a token is
 * HMAC-SHA-256(pepper, token) (RFC 2104, FIPS 198-1).  Whoever has the whole
 * database, but not that file, can neither check a guess nor write a digest of
 * his own.
 *
 * The file has a line id:base64 for each pepper.  Blank lines and lines that
 * begin with # are skipped.  The highest id signs; the others still verify.
 * Each backend reads the file when it first needs a pepper, and again after a
 * reload of the configuration.
 *
 * If the setting names a file that cannot be used, no native token verifies.
 * The error, 58030, reports the reason.  Only the log shows the file's name.
 *
 * Memory: the peppers are static, and wiped before the file is read again.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base64.h"
#include "storage/fd.h"

#include "compat.h"
#include "token/pepper.h"

#define PEPPERS_MAX 64
#define FILE_MAX_LEN 16384

char	   *pepper_file = NULL;

/* In ascending order of id.  Without a pepper_file there are none. */
static Pepper peppers[PEPPERS_MAX];
static int	pepper_count = 0;

/* The decoded secret of the line that is read.  Wiped after each load. */
static uint8 decoded[PEPPER_MAX_LEN + 3];

/* Whether the peppers are those of the file that the setting names. */
static bool loaded = false;

static const Pepper *look_up(int id);
static void load(void);
static int	read_file(char *contents);
static void parse_file(char *contents);
static void parse_line(char *line, int number);
pg_noreturn static void refuse(const char *reason);

/*
 * The setting's assign hook: have the file read again before the next use of a
 * pepper.  A reload of the configuration calls the hook, whether the name
 * changed or not.
 */
void
pepper_assign_file(const char *newval, void *extra)
{
	loaded = false;
}

/*
 * Return the pepper that signs new keys; NULL if the setting names no file.
 * Raise 58030 if the file cannot be used.
 */
const Pepper *
pepper_current(void)
{
	load();
	return pepper_count > 0 ? &peppers[pepper_count - 1] : NULL;
}

/*
 * Return the pepper that a key was signed with.  Raise 58030 if the file cannot
 * be used, or has no pepper of that id.
 */
const Pepper *
pepper_find(int id, const char *key_id)
{
	const Pepper *pepper;

	load();
	pepper = look_up(id);
	if (pepper != NULL)
		return pepper;
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("API key \"%s\" was signed with pepper %d, which is missing",
					key_id, id),
			 errhint("Put the pepper back into the file that rk_apikeys.pepper_file names, and reload the configuration.")));
}

/* Return whether the file has a pepper.  Raise 58030 if it cannot be used. */
bool
pepper_has(int id)
{
	load();
	return look_up(id) != NULL;
}

/* Return a pepper that is loaded; NULL if there is none of that id. */
static const Pepper *
look_up(int id)
{
	for (int i = 0; i < pepper_count; i++)
		if (peppers[i].id == id)
			return &peppers[i];
	return NULL;
}

/*
 * Read the file unless its peppers are loaded.  Raise 58030 if the file cannot
 * be used.  After the error no pepper is left in memory.
 */
static void
load(void)
{
	char		contents[FILE_MAX_LEN + 1];

	if (loaded)
		return;
	explicit_bzero(peppers, sizeof(peppers));
	pepper_count = 0;
	if (pepper_file == NULL || pepper_file[0] == '\0')
	{
		loaded = true;
		return;
	}
	PG_TRY();
	{
		contents[read_file(contents)] = '\0';
		parse_file(contents);
		loaded = true;
	}
	PG_FINALLY();
	{
		explicit_bzero(contents, sizeof(contents));
		explicit_bzero(decoded, sizeof(decoded));
		if (!loaded)
		{
			explicit_bzero(peppers, sizeof(peppers));
			pepper_count = 0;
		}
	}
	PG_END_TRY();
}

/*
 * Read the file and return its length, at most FILE_MAX_LEN.  Raise 58030 if
 * the file cannot be read, or if its owner or mode is wrong.
 */
static int
read_file(char *contents)
{
	/* A pipe is refused below.  O_NONBLOCK, so that it is not waited for. */
	int			fd = OpenTransientFile(pepper_file,
									   O_RDONLY | O_NONBLOCK | PG_BINARY);
	struct stat st;
	int			len = 0;
	int			got;

	if (fd < 0)
		refuse(psprintf("could not open it: %m"));
	if (fstat(fd, &st) < 0)
		refuse(psprintf("could not stat it: %m"));
	if (!S_ISREG(st.st_mode))
		refuse("it is not a regular file");
	/* PostgreSQL has the same rules for ssl_key_file. */
	if (st.st_uid != geteuid() && st.st_uid != 0)
		refuse("it is not owned by the server's user or root");
	if (st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		refuse("it has group or world access");
	if (st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0)
		refuse("it is owned by root and has more access than 0640");
	if (st.st_size > FILE_MAX_LEN)
		refuse("it is too long");
	while ((got = read(fd, contents + len, FILE_MAX_LEN - len)) > 0)
		len += got;
	if (got < 0)
		refuse(psprintf("could not read it: %m"));
	CloseTransientFile(fd);
	return len;
}

/* Load the peppers of all lines.  Raise 58030 if a line is wrong. */
static void
parse_file(char *contents)
{
	char	   *line = contents;

	for (int number = 1; line != NULL; number++)
	{
		char	   *end = strchr(line, '\n');

		if (end != NULL)
			*end++ = '\0';
		parse_line(line, number);
		line = end;
	}
	if (pepper_count == 0)
		refuse("it contains no pepper");
}

/* Add the pepper of a line, if it has one, in the order of ids. */
static void
parse_line(char *line, int number)
{
	char	   *end = line + strlen(line);
	char	   *base64;
	long		id;
	int			at;
	int			len;

	while (end > line && strchr(" \t\r", end[-1]) != NULL)
		*--end = '\0';
	if (*line == '\0' || *line == '#')
		return;
	id = strtol(line, &base64, 10);
	if (*line < '1' || *line > '9' || *base64 != ':' || id > PEPPER_ID_MAX)
		refuse(psprintf("line %d is not id:base64, with an id from 1 to %d",
						number, PEPPER_ID_MAX));
	base64++;
	if (pg_b64_dec_len(end - base64) > (int) sizeof(decoded))
		len = PEPPER_MAX_LEN + 1;
	else
		len = compat_b64_decode(base64, end - base64, decoded, sizeof(decoded));
	if (len < 0)
		refuse(psprintf("line %d is not id:base64", number));
	if (len < PEPPER_MIN_LEN || len > PEPPER_MAX_LEN)
		refuse(psprintf("the pepper in line %d must have %d to %d bytes", number,
						PEPPER_MIN_LEN, PEPPER_MAX_LEN));

	for (at = 0; at < pepper_count && peppers[at].id < id; at++)
		;
	if (at < pepper_count && peppers[at].id == id)
		refuse(psprintf("pepper %ld occurs twice", id));
	if (pepper_count == PEPPERS_MAX)
		refuse(psprintf("it contains more than %d peppers", PEPPERS_MAX));
	memmove(&peppers[at + 1], &peppers[at],
			(pepper_count - at) * sizeof(Pepper));
	pepper_count++;
	peppers[at].id = id;
	peppers[at].len = len;
	memcpy(peppers[at].secret, decoded, len);
}

/* Raise 58030 with the reason.  The log alone shows the file's name. */
static void
refuse(const char *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_IO_ERROR),
			 errmsg("could not use pepper file: %s", reason),
			 errdetail_log("The file is \"%s\".", pepper_file),
			 errhint("rk_apikeys.pepper_file must name a file of lines of id:base64, with mode 0600 and owned by the server's user, or with mode 0640 and owned by root.")));
}
