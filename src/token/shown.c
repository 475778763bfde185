/*
 * shown.c
 *		A value as a message may show it: tokens masked, length cut.
 *
 * A user may paste a token into any argument.  An error message that shows the
 * argument must not carry the token into the log.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"
#include "token/shown.h"
#include "token/token.h"

/* Bytes of a value that a message shows. */
#define SHOWN_MAX 80

/*
 * Return a palloc'd copy of a value for a message.  Tokens are masked, and a
 * copy longer than SHOWN_MAX bytes is cut and ends with "...".
 */
char *
shown_text(text *value)
{
	char	   *copy = text_to_cstring(value);
	size_t		len = token_redact(copy, strlen(copy));

	if (len > SHOWN_MAX)
	{
		len = pg_mbcliplen(copy, len, SHOWN_MAX);
		return psprintf("%.*s...", (int) len, copy);
	}
	return copy;
}
