/*
 * server.c
 *		The little of a server that the fuzzed files call: errors that jump,
 *		random numbers that repeat.  Everything else that they name is a trap.
 */
#include "server.h"

sigjmp_buf	server_error;
bool		server_error_expected = false;

static uint64 state = 1;

void
server_seed(uint64 seed)
{
	state = seed * 2 + 1;
}

bool
pg_strong_random(void *buf, size_t len)
{
	uint8	   *out = buf;

	while (len-- > 0)
	{
		state = state * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
		*out++ = state >> 56;
	}
	return true;
}

bool
errstart(int elevel, const char *domain)
{
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return true;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	HOLDS(server_error_expected);
	siglongjmp(server_error, 1);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *fmt,...)
{
	return 0;
}

int
errdetail_log(const char *fmt,...)
{
	return 0;
}

int
errhint(const char *fmt,...)
{
	return 0;
}

/* Its only use is in messages. */
char *
psprintf(const char *fmt,...)
{
	static char text[1024];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	return text;
}
