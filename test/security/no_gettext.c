/*
 * no_gettext.c
 *		Preloaded beside libasan: messages are not translated.
 *
 * With libasan loaded, a second bindtextdomain() hangs in glibc 2.36: it waits
 * for the lock of the first, which a library's constructor has called
 * (libgpg-error, by way of libsystemd).
 */
char *
bindtextdomain(const char *domain, const char *folder)
{
	return (char *) folder;
}

char *
bind_textdomain_codeset(const char *domain, const char *codeset)
{
	return (char *) codeset;
}

char *
textdomain(const char *domain)
{
	return (char *) domain;
}
